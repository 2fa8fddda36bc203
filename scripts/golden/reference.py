"""Writes `tests/data/golden_reference`: a small copy of every model in the reference's table, and what it computes.

`scripts/make_golden.py --group reference` calls it.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from scripts.golden import classify, decoders_vocabulary, expect, vocabulary
from scripts.golden.decoders_audit import Rows, difference, require_different
from scripts.golden.decoders_embed import load as load_embedder
from scripts.golden.decoders_folder import GEMMA_SCALES, DecoderSpec
from scripts.golden.decoders_folder import SCALES as DECODER_SCALES
from scripts.golden.decoders_mistakes import decoder_mistakes, reconfigured
from scripts.golden.folder import write_json, write_modules
from scripts.golden.mistakes import Mistake, transformer_mistakes, transformer_of
from scripts.golden.reference_table import PUBLISHED, ROWS, Row, shrink
from scripts.golden.spec import Model
from scripts.golden.weights import SCALES, Scales, draw, save
from tests.golden.tolerance import BF16_WIDE, LOGITS_BF16, compare_logits

MAX_BYTES = 150_000  # of a case
MAX_LIKENESS = 0.9  # mean cosine between different texts
MIN_DEVIATION = 0.15  # of each label's logit over the inputs
EXACT = 1e-4  # what f32 may differ from f64
# Gemma divides attention logits by the root of the published head size, 256, whatever the size here: queries and keys
# have to be larger for its soft cap to matter.
GEMMA: Scales = ((r"(q_proj|k_proj)\.weight$", 0.0, 3.5, True), *GEMMA_SCALES)

Load = Callable[[Path], Model]
Compute = Callable[[Model], Rows]


def make(root: Path, texts: list[str]) -> list[dict[str, object]]:
    """The lines of the index, after every case's folder is written under `root` and audited."""
    shutil.rmtree(root, ignore_errors=True)
    lines = []
    for number, row in enumerate(ROWS):
        write_folder(root / row.case.name, row, texts)
        lines.append((_make_classifier if row.case.is_classifier else _make_embedder)(root, row, texts, number))
    return lines


def write_folder(folder: Path, row: Row, texts: list[str]) -> None:
    """The whole checkpoint but for what it computes."""
    folder.mkdir(parents=True)
    case = row.case
    if isinstance(case, DecoderSpec):
        tokenizer = decoders_vocabulary.train(case.tokenizer, [*texts, case.template] if case.template else texts)
        config = decoders_vocabulary.tokenizer_config(case.tokenizer)
    else:
        tokenizer, config = vocabulary.train(case.tokenizer, texts), vocabulary.tokenizer_config(case.tokenizer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "config.json", _config(row, tokenizer))
    if row.template:
        (folder / "template.txt").write_text(row.template, encoding="utf-8")
    _write_model(folder, row)
    write_modules(folder, case)


def _config(row: Row, tokenizer: Tokenizer) -> dict[str, object]:
    ids = {
        key: tokenizer.token_to_id(token) if isinstance(token, str) else [tokenizer.token_to_id(each) for each in token]
        for key, token in row.tokens.items()
    }
    return shrink(PUBLISHED[row.case.name]["config"], row.case.config, ids)


def _write_model(folder: Path, row: Row) -> None:
    case, config = row.case, AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = (AutoModelForSequenceClassification if case.is_classifier else AutoModel).from_config(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if not (case.storage.pooler or case.is_classifier):
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("pooler.")}
    scales = SCALES
    if isinstance(case, DecoderSpec):
        scales = GEMMA if case.family == "Gemma2" else DECODER_SCALES
    dtype = getattr(torch, case.storage.dtype)
    tensors = {name: draw(case.name, name, shape, scales).to(dtype) for name, shape in shapes.items()}
    if case.storage.position_ids:
        words = next(name for name in tensors if name.endswith(".word_embeddings.weight"))
        positions = torch.arange(config.max_position_embeddings).unsqueeze(0)
        tensors[words.replace("word_embeddings.weight", "position_ids")] = positions
    save(folder, tensors, case.storage.shards)


def _make_embedder(root: Path, row: Row, texts: list[str], number: int) -> dict[str, object]:
    case, folder = row.case, root / row.case.name
    model = load_embedder(folder)
    expected = expect.expect(model, texts, expect.choose_texts(texts, number))
    expect.save(expected, folder / "expected.safetensors")
    chosen = [texts[position] for position in expected.text_rows]
    unit = expected.raw / np.linalg.norm(expected.raw, axis=1, keepdims=True)
    likeness = float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())
    _require(likeness <= MAX_LIKENESS, row, f"different texts look alike, mean cosine {likeness:.3f}")

    def compute(model: Model) -> Rows:
        rows = model.encode(chosen, batch_size=1, show_progress_bar=False, convert_to_tensor=True)
        result: Rows = rows.float().numpy()
        return result

    _audit(row, folder, (model, load_embedder, compute), expected.vectors, f"likeness {likeness:.2f}")
    return {
        "name": case.name,
        "kind": "embedding",
        "architecture": case.architecture,
        "dimension": expected.vectors.shape[1],
        "max_seq_length": model.max_seq_length,
        "prompt": expect.prompt_of(model),
        "covers": case.covers,
    }


def _make_classifier(root: Path, row: Row, texts: list[str], number: int) -> dict[str, object]:
    case, folder = row.case, root / row.case.name
    classifier = _load_decoder(folder) if row.template else classify.load(folder)
    rows = classify.choose_inputs(texts, number)
    inputs = classify.inputs_of(texts, rows)
    if row.template:
        rows = [each for each in rows if each[1] != classify.ALONE]
        inputs = [(row.template.format(query=texts[text], document=texts[pair]),) for text, pair in rows]
        rendered = [text for (text,) in inputs]
        expected = classify.expect(classifier, rendered, [(place, classify.ALONE) for place in range(len(rendered))])
        places = np.array(rows, np.int32)
        expected = replace(expected, text_rows=places[:, 0].copy(), pair_rows=places[:, 1].copy())
    else:
        expected = classify.expect(classifier, texts, rows)
    classify.save(expected, folder / "expected.safetensors")
    deviation = float(expected.logits.std(axis=0).min())
    _require(deviation >= MIN_DEVIATION, row, f"different inputs get like logits, deviation {deviation:.2f}")
    features = [classify.encode(classifier, item) for item in inputs]

    def load(elsewhere: Path) -> Model:
        return _load_decoder(elsewhere).model

    def compute(model: Model) -> Rows:
        return classify.logits_of(model, features)

    _audit(row, folder, (classifier.model, load, compute), expected.logits, f"deviation {deviation:.2f}")
    return {
        "name": case.name,
        "kind": "classification",
        "architecture": case.architecture,
        "labels": classifier.labels,
        "problem_type": classifier.model.config.problem_type,
        "max_seq_length": classifier.max_seq_length,
        "covers": case.covers,
    }


def _load_decoder(folder: Path) -> classify.Classifier:
    """A decoder in f32 with exact masks, every weight of it from the folder."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    if any(report[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")):
        raise AssertionError(f"{folder.name}: transformers did not read every weight: {report}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return classify.Classifier(model.eval(), tokenizer, length)


def _audit(row: Row, folder: Path, of: tuple[Model, Load, Compute], expected: Rows, note: str) -> None:
    """Prints a line about the case. Raises AssertionError if it proves too little or cannot be met."""
    model, load, compute = of
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    _require(size <= MAX_BYTES, row, f"{size} bytes")
    exact = difference(compute(copy.deepcopy(model).double()), expected)
    _require(exact <= EXACT, row, f"f32 and f64 differ by {exact:.1e}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_bf16 = _bf16_error(row, compute(model), expected)
    least = []
    for name, make_mistake in _mistakes(row, model).items():
        wrong = copy.deepcopy(model)
        make_mistake(wrong)
        least.append((require_different(name, compute(wrong), expected), name))
    for name, changes in row.mistakes.items():
        with reconfigured(folder, changes) as elsewhere:
            least.append((require_different(name, compute(load(elsewhere)), expected), name))
    caught = f"{len(least)} mistakes caught, the least visible {min(least)[1]} by {min(least)[0]:.1e}"
    print(f"{row.case.name:42} {size:6} bytes, {note}, f64 {exact:.0e}, bf16 {in_bf16}, {caught}", flush=True)


def _bf16_error(row: Row, actual: Rows, expected: Rows) -> str:
    """How far torch's own bf16 is off. Raises AssertionError where that is further than an engine's may be."""
    if row.case.is_classifier:
        return f"max-abs {compare_logits(actual, expected, LOGITS_BF16):.0e}"
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((actual * expected).sum(axis=1) / lengths).min())
    _require(cosine >= BF16_WIDE.min_cosine, row, f"torch's own bf16 has a cosine of {cosine:.5f}")
    return f"cosine {cosine:.5f}"


def _mistakes(row: Row, model: Model) -> dict[str, Mistake]:
    """Mistakes in the layers and in pooling."""
    case = row.case
    if isinstance(case, DecoderSpec):
        found = decoder_mistakes(case, transformer_of(model))
    else:
        found = transformer_mistakes(case, model, case.config["max_position_embeddings"])
    return found if case.is_classifier else found | {f"{mode} pooling": _pool(mode) for mode in ("mean", "max")}


def _pool(mode: str) -> Mistake:
    def make_mistake(model: Model) -> None:
        model[1] = Pooling(model[1].embedding_dimension, mode)

    return make_mistake


def _require(holds: bool, row: Row, complaint: str) -> None:
    if not holds:
        raise AssertionError(f"{row.case.name}: {complaint}")
