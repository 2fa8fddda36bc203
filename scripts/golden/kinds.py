"""Computes a checkpoint's outputs by transformers and sentence-transformers: one input at a time, in f32 on the CPU.

`KINDS` has for each kind of model how its folder is loaded, how its rows are computed, and what the tests read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import Encoding, Tokenizer, normalizers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from scripts.golden import inputs, remote  # noqa: F401 - registers its classes
from scripts.golden.expected import Arrays
from scripts.golden.inputs import Item
from scripts.golden.published import readable
from tests.golden.checkpoints import Description

Model: TypeAlias = Any  # a SentenceTransformer, a SparseEncoder, a class of transformers, or Late
Features: TypeAlias = dict[str, Any]  # name -> i64[1, n], as tokenizers of transformers return them
Rows = npt.NDArray[np.float32]  # [N, D], or [T, E] with a row per token

EAGER = {"dtype": torch.float32, "attn_implementation": "eager"}  # attention whose masks are exact in every family
IGNORED = ("pooler", "position_ids", "linear.weight")  # tensors that a class may leave unread; the last is ColBERT's


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in f32."""

    model: Model
    tokenizer: Model
    max_seq_length: int
    prompt: str = ""  # the default prompt, before every text


@dataclass(frozen=True)
class Inputs:
    """The inputs of a case."""

    rows: list[tuple[int, int]]  # positions of text and pair in mixed.jsonl
    items: list[Item]
    features: list[Features]


@dataclass(frozen=True)
class Kind:
    """A kind of model: how it is loaded and what it computes."""

    key: str  # the name of the rows in the file of expected outputs
    load: Callable[[Path], Loaded]
    compute: Callable[[Model, Inputs], Rows]
    facts: Callable[[Loaded, Rows], dict[str, Any]]  # the entries for the case in index.json


def read(of_class: Model, folder: Path) -> Loaded:
    """Returns the model and its tokenizer. Raises AssertionError if the folder lacks a weight or has others."""
    options = {**EAGER, "local_files_only": True, "output_loading_info": True}
    model, report = of_class.from_pretrained(folder, **options)
    unknown = [name for name in report["unexpected_keys"] if not any(part in name for part in IGNORED)]
    missing = [name for name in report["missing_keys"] if of_class is not AutoModel or "pooler" not in name]
    if missing or report["mismatched_keys"] or unknown:
        raise AssertionError(f"{folder.name}: transformers did not read every weight: {report}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = tokenizer.model_max_length
    if of_class is AutoModelForSequenceClassification:
        padding_idx = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
        table = model.config.max_position_embeddings - (0 if padding_idx is None else padding_idx + 1)
        length = min(length, table)
    return Loaded(model.eval(), tokenizer, length)


def _load_sentence_transformer(folder: Path) -> Loaded:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=EAGER)
    prompt = model.prompts[model.default_prompt_name] if model.default_prompt_name else ""
    return Loaded(model, model.tokenizer, model.max_seq_length, prompt)


def _load_sparse(folder: Path) -> Loaded:
    if not (folder / "modules.json").is_file():
        return read(AutoModelForMaskedLM, folder)
    model = SparseEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=EAGER)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Loaded(model, tokenizer, tokenizer.model_max_length)


class Late(nn.Module):  # type: ignore[misc]
    """A transformer and the projection of each of its tokens."""

    def __init__(self, encoder: Model, weight: torch.Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight.data = weight.float()

    def forward(self, **features: torch.Tensor) -> torch.Tensor:
        """f32[n, E], every row of length 1."""
        tokens = self.linear(self.encoder(**features).last_hidden_state[0])
        return nn.functional.normalize(tokens, dim=-1)


def _load_late(folder: Path) -> Loaded:
    dense = folder / "1_Dense"
    tensors = load_file((dense if dense.is_dir() else folder) / "model.safetensors")
    loaded = read(AutoModel, folder)
    return Loaded(Late(loaded.model, tensors["linear.weight"]), loaded.tokenizer, loaded.max_seq_length)


def load(case: Description, folder: Path, changes: dict[str, Any] | None = None) -> Loaded:
    """Returns the checkpoint at `folder`, with `changes` to the config that transformers reads."""
    with readable(folder, changes) as path:
        return KINDS[case.kind].load(path)


def prepare(case: Description, loaded: Loaded, texts: list[str]) -> Inputs:
    """Returns the inputs of a case."""
    rows = inputs.choose(case, texts)
    items = inputs.items_of(case, texts, rows)
    return Inputs(rows, items, [tokenize(case, loaded, item) for item in items])


def tokenize(case: Description, loaded: Loaded, item: Item) -> Features:
    """Returns the features of one input for the model."""
    if case.kind == "embedding":
        return dict(loaded.model.preprocess([item[0]], prompt=loaded.prompt or None))
    options = {"truncation": True, "max_length": loaded.max_seq_length, "return_tensors": "pt"}
    return dict(loaded.tokenizer(*item, **options))


def tokenizer_of(case: Description, folder: Path, max_seq_length: int) -> Tokenizer:
    """Returns the tokenizer in tokenizer.json, with the length limit and the lower case that an engine applies."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_seq_length, strategy="longest_first", direction="right")
    if case.files.get("sentence_bert_config.json", {}).get("do_lower_case"):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), tokenizer.normalizer])
    return tokenizer


def encode(tokenizer: Tokenizer, item: Item, prompt: str = "") -> Encoding:
    """Returns the encoding of a text or of a pair; the prompt is before the first text."""
    return tokenizer.encode(prompt + item[0], item[1] if len(item) > 1 else None)


def expect(case: Description, folder: Path, loaded: Loaded, given: Inputs) -> Arrays:
    """Returns the arrays that the tests read. `input_ids` and `type_ids` are concatenated over all inputs."""
    kind = KINDS[case.kind]
    ids = [each["input_ids"][0].numpy().astype(np.int32) for each in given.features]
    expected: Arrays = {
        "text_rows": np.array([text for text, _ in given.rows], np.int32),
        "input_ids": np.concatenate(ids),
        "cu_seqlens": np.cumsum([0, *map(len, ids)], dtype=np.int32),
        kind.key: kind.compute(loaded.model, given),
    }
    if case.kind == "classification":
        expected["pair_rows"] = np.array([pair for _, pair in given.rows], np.int32)
        tokenizer = tokenizer_of(case, folder, loaded.max_seq_length)
        type_ids = [encode(tokenizer, item).type_ids for item in given.items]
        expected["type_ids"] = np.concatenate(type_ids).astype(np.int32)
    if case.kind == "embedding" and isinstance(list(loaded.model)[-1], Normalize):
        expected["raw"] = _before_normalize(loaded.model, given)
    return expected


def _each(given: Inputs, rows: Callable[[Features], torch.Tensor]) -> Rows:
    """Returns the rows of all inputs, each computed alone."""
    with torch.inference_mode():
        return np.concatenate([rows(dict(features)).float().numpy() for features in given.features])


def _encode(model: Model, given: Inputs) -> Rows:
    texts = [item[0] for item in given.items]
    vectors = model.encode(texts, batch_size=1, show_progress_bar=False, convert_to_tensor=True)
    result: Rows = vectors.float().numpy()
    return result


def _before_normalize(model: Model, given: Inputs) -> Rows:
    """Returns f32[N, D]: the input of the last module, a Normalize."""

    def rows(features: Features) -> torch.Tensor:
        for module in list(model)[:-1]:
            features = module(features)
        return features["sentence_embedding"]

    return _each(given, rows)


def _sparse_rows(model: Model, given: Inputs) -> Rows:
    """Returns f32[N, V]: for each word, the largest log(1 + relu(logit)) over all tokens."""
    if isinstance(model, SparseEncoder):
        return _each(given, lambda features: model(features)["sentence_embedding"])
    return _each(given, lambda features: model(**features).logits[0].relu().log1p().max(dim=0, keepdim=True).values)


def yes_no_ids(tokenizer: Model) -> tuple[int, int]:
    """Returns the token ids of the answers "yes" and "no"."""
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    return int(yes), int(no)


def _load_yes_no(folder: Path) -> Loaded:
    loaded = read(AutoModelForCausalLM, folder)
    loaded.model.answers = yes_no_ids(loaded.tokenizer)
    return loaded


def _yes_no_rows(model: Model, given: Inputs) -> Rows:
    """Returns f32[N, 1]: the logit of "yes" minus the logit of "no" after the prompt."""
    yes, no = model.answers

    def rows(features: Features) -> torch.Tensor:
        logits = model(input_ids=features["input_ids"]).logits[:, -1].float()
        return logits[:, yes : yes + 1] - logits[:, no : no + 1]

    return _each(given, rows)


def _logits(model: Model, given: Inputs) -> Rows:
    return _each(given, lambda features: model(**features).logits)


def labels_of(loaded: Loaded) -> list[str]:
    """Returns the names of the labels in the order of the logits."""
    names = loaded.model.config.id2label
    return [names[position] for position in range(len(names))]


KINDS = {
    "embedding": Kind(
        "vectors",
        _load_sentence_transformer,
        _encode,
        lambda loaded, rows: {"dimension": rows.shape[1], "prompt": loaded.prompt},
    ),
    "classification": Kind(
        "logits",
        lambda folder: read(AutoModelForSequenceClassification, folder),
        _logits,
        lambda loaded, rows: {"labels": labels_of(loaded), "problem_type": loaded.model.config.problem_type},
    ),
    "token_classification": Kind(
        "logits",
        lambda folder: read(AutoModelForTokenClassification, folder),
        lambda model, given: _each(given, lambda features: model(**features).logits[0]),
        lambda loaded, rows: {},
    ),
    "sparse": Kind("vectors", _load_sparse, _sparse_rows, lambda loaded, rows: {}),
    "colbert": Kind(
        "tokens",
        _load_late,
        lambda model, given: _each(given, lambda features: model(**features)),
        lambda loaded, rows: {},
    ),
    "yes_no": Kind("logits", _load_yes_no, _yes_no_rows, lambda loaded, rows: {}),
}
