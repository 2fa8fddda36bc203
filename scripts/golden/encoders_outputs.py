"""Golden encoders that give a row a token (labels, late interaction) or the weights of the vocabulary's words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from sentence_transformers import SparseEncoder
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from scripts.golden.encoders_aggregation import write_aggregation
from scripts.golden.encoders_audit import (
    Check,
    Ids,
    Rows,
    audit,
    check_ids,
    is_close_in_direction,
    is_close_in_logits,
    likeness,
)
from scripts.golden.encoders_folder import EncoderSpec, readable, write_folder
from scripts.golden.expect import NUM_EXTREMES, choose_texts
from scripts.golden.folder import write_json
from scripts.golden.spec import Dense, Model

NUM_TEXTS = 16
MAX_LIKENESS = 0.9  # mean cosine between different rows
MIN_DEVIATION = 0.15  # of each label's logit over the tokens
SPARSE = {"min": 0.05, "max": 0.7}  # share of weights that are not zero
EAGER = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}


@dataclass(frozen=True)
class Kind:
    """What is computed of each text, and how it is stored."""

    name: str  # in the index
    key: str  # in expected.safetensors
    load: Callable[[Path], Model]
    rows: Callable[[Model, dict[str, Any]], torch.Tensor]  # model, features -> [n, E], or [1, V]
    finish: Callable[[Path, EncoderSpec], None]  # files that write_folder does not write
    line: Callable[[Model, Rows], dict[str, object]]  # what index.json says beside the usual, and checks of the rows
    is_close: Check  # for rows in bf16


@dataclass(frozen=True)
class Encoded:
    """Token ids of some texts, as they are stored."""

    text_rows: Ids
    input_ids: Ids
    cu_seqlens: Ids


def make_outputs(root: Path, spec: EncoderSpec, texts: list[str], number: int, kind: Kind) -> dict[str, object]:
    """The line of the index, after the folder and its expectations are written and audited."""
    folder = root / spec.name
    write_folder(folder, spec, texts)
    kind.finish(folder, spec)
    with readable(folder) as path:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = kind.load(path)
    length = tokenizer.model_max_length
    rows = choose(texts, number)
    features = [dict(tokenizer(texts[row], truncation=True, max_length=length, return_tensors="pt")) for row in rows]
    encoded = _encoded(rows, features)
    check_ids(folder, [(texts[row],) for row in rows], encoded, length)

    def compute(model: Model) -> Rows:
        with torch.inference_mode():
            return np.concatenate([kind.rows(model, each).float().numpy() for each in features])

    expected = compute(model)
    save_file({**vars(encoded), kind.key: expected}, folder / "expected.safetensors")
    said = kind.line(model, expected)
    print(f"{spec.name:36} {audit(folder, spec, kind.load, compute, expected, kind.is_close)}", flush=True)
    line = {"name": spec.name, "kind": kind.name, "architecture": spec.architecture, **said}
    return line | {"max_seq_length": length, "covers": spec.covers}


def choose(texts: list[str], number: int) -> list[int]:
    """Fewer of the texts that an embedding case of this number has, the extremes among them."""
    rows = sorted(choose_texts(texts, number), key=lambda row: (len(texts[row]), texts[row]))
    extremes = [*rows[: NUM_EXTREMES - 1], *rows[1 - NUM_EXTREMES :]]
    others = sorted(set(rows) - set(extremes))
    return sorted([*extremes, *others[: NUM_TEXTS - len(extremes)]])


def _encoded(rows: list[int], features: list[dict[str, Any]]) -> Encoded:
    ids = [each["input_ids"][0].numpy().astype(np.int32) for each in features]
    cu_seqlens = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    return Encoded(np.array(rows, np.int32), np.concatenate(ids), cu_seqlens)


def _read_whole(of_class: Model, folder: Path) -> Model:
    """The folder's model. Raises unless it holds every weight and no other."""
    model, report = of_class.from_pretrained(folder, **EAGER, output_loading_info=True)
    unknown = [name for name in report["unexpected_keys"] if name != "linear.weight"]  # ColBERT's, read apart
    missing = [name for name in report["missing_keys"] if "pooler" not in name]  # which no row needs
    if missing or report["mismatched_keys"] or unknown:
        raise AssertionError(f"{folder.name}: transformers did not read every weight: {report}")
    return model.eval()


def _labels(model: Model, logits: Rows) -> dict[str, object]:
    """The labels in the order of the logits. Raises if different tokens get like logits."""
    if (deviation := float(logits.std(axis=0).min())) < MIN_DEVIATION:
        raise AssertionError(f"different tokens get like logits, deviation {deviation:.2f}")
    names = model.config.id2label
    return {"labels": [names[position] for position in range(len(names))]}


TOKEN_CLASSIFICATION = Kind(
    name="token_classification",
    key="logits",
    load=lambda folder: _read_whole(AutoModelForTokenClassification, folder),
    rows=lambda model, features: model(**features).logits[0],
    finish=write_aggregation,
    line=_labels,
    is_close=is_close_in_logits,
)


def _sparse_files(folder: Path, spec: EncoderSpec) -> None:
    """What sentence-transformers 5.0 to 5.3 wrote of a SparseEncoder, where the case has a length for it."""
    if spec.max_seq_length is None:
        return
    types = "sentence_transformers.sparse_encoder.models"
    names = (("MLMTransformer", ""), ("SpladePooling", "1_SpladePooling"))
    listing = [
        {"idx": position, "name": str(position), "path": path, "type": f"{types}.{name}"}
        for position, (name, path) in enumerate(names)
    ]
    write_json(folder / "modules.json", listing)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": spec.max_seq_length, "do_lower_case": False})
    pooling = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None}
    write_json(folder / "1_SpladePooling" / "config.json", pooling | {"word_embedding_dimension": spec.tokenizer.size})
    config = {
        "model_type": "SparseEncoder",
        "__version__": {"sentence_transformers": "5.0.0", "transformers": "4.50.3", "pytorch": "2.6.0+cu124"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "dot",
    }
    write_json(folder / "config_sentence_transformers.json", config)


def _load_sparse(folder: Path) -> Model:
    if not (folder / "modules.json").is_file():
        return _read_whole(AutoModelForMaskedLM, folder)
    options = {key: EAGER[key] for key in ("dtype", "attn_implementation")}
    return SparseEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=options)


def _sparse_rows(model: Model, features: dict[str, Any]) -> torch.Tensor:
    """The largest log(1 + relu) of each word over all tokens: of sentence-transformers where it can read the folder."""
    if isinstance(model, SparseEncoder):
        return model(dict(features))["sentence_embedding"]
    return model(**features).logits[0].relu().log1p().max(dim=0, keepdim=True).values


def _sparse_line(_model: Model, vectors: Rows) -> dict[str, object]:
    """The width. Raises if the vectors are not sparse, or like each other."""
    share, like = float((vectors > 0).mean()), likeness(vectors)
    if not SPARSE["min"] < share < SPARSE["max"] or like > MAX_LIKENESS:
        raise AssertionError(f"{share:.2f} of the weights are above zero, mean cosine {like:.2f}")
    return {"dimension": vectors.shape[1]}


SPLADE = Kind(
    name="sparse",
    key="vectors",
    load=_load_sparse,
    rows=_sparse_rows,
    finish=_sparse_files,
    line=_sparse_line,
    is_close=is_close_in_direction,
)


class Late(nn.Module):  # type: ignore[misc]
    """A transformer and the projection of each of its tokens."""

    def __init__(self, encoder: Model, weight: torch.Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight.data = weight.float()

    def forward(self, **features: torch.Tensor) -> torch.Tensor:
        """[n, E], of length 1 each."""
        tokens = self.linear(self.encoder(**features).last_hidden_state[0])
        return nn.functional.normalize(tokens, dim=-1)


def _load_late(folder: Path) -> Model:
    dense = folder / "1_Dense"
    tensors = load_file((dense if dense.is_dir() else folder) / "model.safetensors")
    return Late(_read_whole(AutoModel, folder), tensors["linear.weight"])


def _late_files(folder: Path, spec: EncoderSpec) -> None:
    """What PyLate writes in another way than sentence-transformers, where the case has modules."""
    if not spec.modules:
        return
    dense = next(module for module in spec.modules if isinstance(module, Dense))
    listing = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    listing[1]["type"] = "pylate.models.Dense.Dense"
    write_json(folder / "modules.json", listing)
    config = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    colbert = {
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 32,
        "document_length": 180,
        "attend_to_expansion_tokens": False,
        "skiplist_words": [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"],
    }
    write_json(folder / "config_sentence_transformers.json", config | {"similarity_fn_name": "MaxSim"} | colbert)
    path = folder / "1_Dense" / "config.json"
    use_residual = {"use_residual": False}
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | use_residual)
    if dense.bias:
        raise ValueError(f"{spec.name}: PyLate's Dense has no bias")


def _late_line(_model: Model, tokens: Rows) -> dict[str, object]:
    """The width. Raises if different tokens are like each other."""
    if (like := likeness(tokens)) > MAX_LIKENESS:
        raise AssertionError(f"different tokens look alike, mean cosine {like:.2f}")
    return {"dimension": tokens.shape[1]}


LATE_INTERACTION = Kind(
    name="colbert",
    key="tokens",
    load=_load_late,
    rows=lambda model, features: model(**features),
    finish=_late_files,
    line=_late_line,
    is_close=is_close_in_direction,
)
