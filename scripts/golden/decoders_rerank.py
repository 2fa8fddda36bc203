"""Golden rerankers that are language models: the logit of "yes" less that of "no" after a whole prompt."""

from __future__ import annotations

import copy
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.golden.classify import NUM_BRIEF
from scripts.golden.decoders_audit import Rows, check_ids, check_size, difference, require_different
from scripts.golden.decoders_folder import DecoderSpec, write_folder
from scripts.golden.decoders_heads import CHAT_TEMPLATE
from scripts.golden.decoders_mistakes import decoder_mistakes, reconfigured
from scripts.golden.spec import Layout, Model

NUM_PAIRS = 20
MAX_CHARACTERS = 160  # of a document: prompts stay far from the length at which somebody would have to cut
MIN_DEVIATION = 0.3
LOCAL_VERSION = re.compile(r'\+[a-z]+[0-9]*"')  # torch's, as in 2.15.0+cpu


@dataclass(frozen=True)
class Judged:
    """Token ids and logits of some pairs, as they are stored."""

    text_rows: npt.NDArray[np.int32]  # [N], queries' positions in mixed.jsonl
    pair_rows: npt.NDArray[np.int32]  # [N], documents'
    input_ids: npt.NDArray[np.int32]  # [T], of whole prompts
    cu_seqlens: npt.NDArray[np.int32]  # [N + 1]
    logits: npt.NDArray[np.float32]  # [N, 1], yes - no


def make_reranker(root: Path, spec: DecoderSpec, texts: list[str], number: int) -> dict[str, object]:
    """The line of the index, after the folder and its expectations are written and audited."""
    folder = root / spec.name
    _write(folder, spec, texts)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = _choose_pairs(texts, number)
    prompts = [_fill(spec.template, texts[query], texts[document]) for query, document in rows]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    judged = Judged(
        text_rows=np.array([query for query, _ in rows], np.int32),
        pair_rows=np.array([document for _, document in rows], np.int32),
        input_ids=np.concatenate(ids).astype(np.int32),
        cu_seqlens=np.cumsum([0, *map(len, ids)], dtype=np.int32),
        logits=_judge(load(folder), tokenizer, ids),
    )
    save_file(dict(vars(judged)), folder / "expected.safetensors")
    check_ids(folder, tokenizer.model_max_length, prompts, judged)
    pairs = [(texts[query], texts[document]) for query, document in rows]
    print(f"{spec.name:36} {_audit(folder, spec, tokenizer, judged, pairs)}", flush=True)
    return {
        "name": spec.name,
        "kind": "yes_no",
        "architecture": spec.architecture,
        "max_seq_length": tokenizer.model_max_length,
        "template": spec.template,
        "covers": spec.covers,
    }


def load(folder: Path) -> Model:
    """The language model in f32. Raises unless the folder holds exactly its weights."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise AssertionError(f"{folder.name}: transformers did not read every weight: {report}")
    return model.eval()


def _write(folder: Path, spec: DecoderSpec, texts: list[str]) -> None:
    """The checkpoint, or what CrossEncoder saves of one that has a chat template."""
    if spec.layout is Layout.PLAIN:
        return write_folder(folder, spec, texts)
    write_folder(folder, replace(spec, layout=Layout.PLAIN), texts)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    options = {"dtype": getattr(torch, spec.storage.dtype)}
    encoder = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
    with tempfile.TemporaryDirectory() as temporary:
        encoder.save_pretrained(temporary, create_model_card=False)
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            file.unlink()
        for file in sorted(path for path in Path(temporary).rglob("*") if path.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    versions = folder / "config_sentence_transformers.json"
    versions.write_text(LOCAL_VERSION.sub('"', versions.read_text(encoding="utf-8")), encoding="utf-8")


def _choose_pairs(texts: list[str], number: int) -> list[tuple[int, int]]:
    """Queries with documents, short enough both; the first with its places changed at the end."""
    by_length = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))
    queries = [by_length[(number * NUM_PAIRS + step * 3) % NUM_BRIEF] for step in range(NUM_PAIRS - 1)]
    documents = [row for row in by_length[NUM_BRIEF // 2 :] if len(texts[row]) <= MAX_CHARACTERS]
    chosen = [(query, documents[(number + step * 7) % len(documents)]) for step, query in enumerate(queries)]
    return [*chosen, chosen[0][::-1]]


def _fill(template: str, query: str, document: str) -> str:
    """The prompt. Not str.format, since texts have braces too, nor one replacement after the other."""
    before, rest = template.split("{query}")
    between, after = rest.split("{document}")
    return before + query + between + document + after


def _judge(model: Model, tokenizer: Model, prompts: list[list[int]]) -> Rows:
    """[N, 1], each prompt computed alone."""
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    with torch.inference_mode():
        last = [model(input_ids=torch.tensor([ids])).logits[0, -1].float() for ids in prompts]
    return np.array([[float(logits[yes] - logits[no])] for logits in last], np.float32)


def _audit(folder: Path, spec: DecoderSpec, tokenizer: Model, judged: Judged, pairs: list[tuple[str, str]]) -> str:
    """One line for people. Raises AssertionError if the case proves too little or cannot be met."""
    size = check_size(folder)
    if (deviation := float(judged.logits.std())) < MIN_DEVIATION:
        raise AssertionError(f"{spec.name}: different pairs get like logits, deviation {deviation:.2f}")
    model = load(folder)
    prompts = [ids.tolist() for ids in np.split(judged.input_ids, judged.cu_seqlens[1:-1])]
    if difference(_judge_by_parts(model, tokenizer, spec, pairs), judged.logits) > 1e-5:
        raise AssertionError(f"{spec.name}: tokens of the template depend on the texts")
    if spec.layout is Layout.MODERN:
        _check_cross_encoder(folder, pairs, judged)
    exact = difference(_judge(copy.deepcopy(model).double(), tokenizer, prompts), judged.logits)
    if exact > 1e-4:
        raise AssertionError(f"{spec.name}: f32 and f64 differ by {exact:.1e}")
    spoilt = {
        "query and document change places": _judge_by_parts(model, tokenizer, spec, [pair[::-1] for pair in pairs]),
        "a token is missing at the end": _judge(model, tokenizer, [ids[:-1] for ids in prompts]),
    }
    found = decoder_mistakes(spec, model.base_model)
    if not model.config.tie_word_embeddings:
        found["embeddings for lm_head"] = _tie
    for name, make in found.items():
        wrong = copy.deepcopy(model)
        make(wrong)
        spoilt[name] = _judge(wrong, tokenizer, prompts)
    for name, changes in spec.mistakes.items():
        with reconfigured(folder, changes) as elsewhere:
            spoilt[name] = _judge(load(elsewhere), tokenizer, prompts)
    seen, least = min((require_different(name, logits, judged.logits), name) for name, logits in spoilt.items())
    return (
        f"{size:6} bytes, {max(map(len, prompts))} tokens, deviation {deviation:.2f}, f64 {exact:.0e}, "
        f"{len(spoilt)} mistakes caught, the least visible {least} by {seen:.1e}"
    )


def _tie(model: Model) -> None:
    model.lm_head.weight.data = model.model.embed_tokens.weight.data


def _judge_by_parts(model: Model, tokenizer: Model, spec: DecoderSpec, pairs: list[tuple[str, str]]) -> Rows:
    """As Qwen3-Reranker's model card does it, which encodes what stands before and after the texts by itself."""
    before, rest = spec.template.split("<Instruct>")
    middle, after = rest.split("{document}")
    parts = [(before, _fill(f"<Instruct>{middle}{{document}}", *pair), after) for pair in pairs]
    ids = [[token for part in of_pair for token in tokenizer(part)["input_ids"]] for of_pair in parts]
    return _judge(model, tokenizer, ids)


def _check_cross_encoder(folder: Path, pairs: list[tuple[str, str]], judged: Judged) -> None:
    """Raises unless CrossEncoder reads its own files and scores the same."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    encoder = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
    scores = encoder.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=1, show_progress_bar=False)
    if difference(scores[:, None], judged.logits) > 1e-5:
        raise AssertionError(f"{folder.name}: CrossEncoder scores {scores}, not {judged.logits[:, 0]}")
