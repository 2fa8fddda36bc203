"""Each family's tiny checkpoints, built into engine folders and loaded, against the output of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from bei_core.checkpoint import resolve
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.tensorrt_llm.limits import check_model
from bei_core.engines.torch.engine import TorchEngine
from bei_core.engines.torch.folder import attention_of, facts_of
from bei_core.engines.torch.models.sequences import Sequences, flatten
from bei_core.errors import UnsupportedModelError
from bei_core.models.families import family_name
from bei_core.models.spec import read_spec
from bei_core.tasks import Classify, Embed, EncodeOptions, Pair, Rows, Tokens
from bei_core.text.templates import named_template
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import (
    CASES,
    CLASSIFICATION_CASES,
    GROUP_CASES,
    GROUP_CLASSIFICATION_CASES,
    HEAD_CASES,
    HEAD_CLASSIFICATION_CASES,
    OUTPUT_CASES,
    Case,
    ClassificationCase,
    OutputCase,
)
from tests.golden.sentence import EXPECTED, PAIRS, TEXTS
from tests.golden.sentence_heads import FOLDERS
from tests.golden.tolerance import BF16_WIDE, F32, LOGITS_BF16, LOGITS_F32, compare, compare_logits
from tests.gpu_path.conftest import Builder
from tests.gpu_path.table import TABLE

EXCLUDED = "bert-prompt-excluded"  # has a prompt that pooling leaves out, so that token ids alone are not enough


def runs(engine: str, folder: Path) -> bool:
    """Whether an engine supports a model."""
    try:
        facts = facts_of(read_spec(resolve(str(folder))))
        if engine == "tensorrt_llm":
            check_model(facts, "float32")
    except UnsupportedModelError:
        return False
    return True


def on_each_engine(cases: Iterable[Any]) -> list[Any]:
    """(engine, case) for each engine that supports the case."""
    return [
        pytest.param(engine, case, id=f"{engine}-{case}")
        for case in cases
        for engine in ("torch", "tensorrt_llm")
        if runs(engine, case.folder)
    ]


EMBEDDERS = [case for case in (*CASES, *GROUP_CASES, *HEAD_CASES) if case.name != EXCLUDED]
CLASSIFIERS = [*CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES, *HEAD_CLASSIFICATION_CASES]
ANSWERERS = [case for case in OUTPUT_CASES if case.kind == "yes_no"]
OTHER_OUTPUTS = [case for case in OUTPUT_CASES if case.kind != "yes_no"]
OTHERS = [case for case in (*CASES, *GROUP_CASES) if not runs("tensorrt_llm", case.folder)]


def alone(engine: Engine, tokens: Iterable[Tokens]) -> Rows:
    return np.concatenate([engine.forward(Batch.pack([item])) for item in tokens])


def padded(engine: Engine, tokens: list[Tokens]) -> Rows:
    """As `forward`, with the padding of a CUDA graph: empty sequences, and tokens that no sequence owns.

    Our attention fills the rows of such tokens with NaN; token vectors of any kind are poisoned, too.
    """
    if not isinstance(engine, TorchEngine):  # the stand-in of TensorRT-LLM pads by itself
        return engine.forward(Batch.pack(tokens))
    batch = Batch.pack(tokens)
    sequences = Sequences.of(flatten(batch), batch.num_tokens, batch.lengths.tolist())
    longer = {
        name: torch.cat([getattr(sequences, name), torch.zeros(9, dtype=getattr(sequences, name).dtype)])
        for name in ("ids", "type_ids", "position_ids", "pooled")
    }
    lengths = torch.cat([sequences.lengths, torch.zeros(3, dtype=torch.int32)])
    sequences = replace(sequences, **longer, lengths=lengths, host_lengths=lengths)
    with torch.inference_mode():
        hidden = engine._model.transformer(sequences)
        assert torch.isnan(hidden[-9:]).all()
        assert not torch.isnan(hidden[:-9]).any()
        rows = engine._model.head.rows(hidden, sequences)
    assert rows is not None
    return np.asarray(rows[:-3].numpy())


def largest(actual: Rows, expected: Rows) -> float:
    return float(np.abs(actual - expected).max())


def prefix_column(folder: Path) -> str:
    names = resolve(str(folder)).tensors().names()
    return (
        "prefix" if any(re.match(r"(model|bert|roberta|distilbert|electra)\.", name) for name in names) else "no prefix"
    )


@pytest.mark.parametrize(("name", "case"), on_each_engine(EMBEDDERS))
def test_vectors_equal_those_of_transformers_in_a_batch_and_alone(name: str, case: Case, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    engine = built(checkpoint, spec, engine=name, dtype="float32").engine
    tokens = [Tokens(ids, np.zeros_like(ids)) for ids in case.ids]
    together, single = engine.forward(Batch.pack(tokens)), alone(engine, tokens)
    compare(together, case.raw, F32)
    compare(single, case.raw, F32)
    compare(padded(engine, tokens), case.raw, F32)
    compare(Embed(case.texts, normalize=spec.normalize).finish(together), case.vectors, F32)
    assert (engine.info.row_width, engine.info.max_seq_len) == (case.dimension, case.max_seq_length)
    family = f"{name}, {family_name(case.architecture)}"
    TABLE.note(family, "embedding", largest(together, case.raw))
    TABLE.note(family, "packed = alone", largest(together, single))
    TABLE.note(family, prefix_column(case.folder), largest(together, case.raw))


@pytest.mark.parametrize(("name", "case"), on_each_engine(CLASSIFIERS))
def test_logits_equal_those_of_transformers_in_a_batch_and_alone(
    name: str, case: ClassificationCase, built: Builder
) -> None:
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint), engine=name, dtype="float32").engine
    tokens = [Tokens(ids, type_ids) for ids, type_ids in zip(case.ids, case.type_ids, strict=True)]
    together, single = engine.forward(Batch.pack(tokens)), alone(engine, tokens)
    compare_logits(together, case.logits, LOGITS_F32)
    compare_logits(single, case.logits, LOGITS_F32)
    compare_logits(padded(engine, tokens), case.logits, LOGITS_F32)
    family = f"{name}, {family_name(case.architecture)}"
    TABLE.note(family, "classification", largest(together, case.logits))
    TABLE.note(family, "packed = alone", largest(together, single))
    TABLE.note(family, prefix_column(case.folder), largest(together, case.logits))


@pytest.mark.parametrize("name", ["torch", "tensorrt_llm"])
@pytest.mark.parametrize("case", ANSWERERS, ids=str)
def test_the_score_of_a_yes_no_reranker_is_the_logit_of_yes_minus_that_of_no(
    name: str, case: OutputCase, built: Builder
) -> None:
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint, template=named_template("qwen3-reranker"))
    engine = built(checkpoint, spec, engine=name, dtype="float32").engine
    rows = engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids]))
    compare_logits(rows, case.expected, LOGITS_F32)
    TABLE.note(f"{name}, {family_name(spec.architecture)}", "classification", largest(rows, case.expected))


@pytest.mark.parametrize("case", OTHER_OUTPUTS, ids=str)
def test_entities_terms_and_token_vectors_equal_those_of_transformers(case: OutputCase, built: Builder) -> None:
    """Of token classifiers, SPLADE and ColBERT, in a batch and alone, in f32 and bf16."""
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint, pooling="splade" if case.kind == "sparse" else None)
    tokens = [Tokens(ids, np.zeros_like(ids)) for ids in case.ids]
    together: dict[str, Rows] = {}
    for dtype in ("float32", "bfloat16"):
        engine = built(checkpoint, spec, engine="torch", dtype=dtype).engine
        one_by_one = [outputs(engine, [item], case.kind) for item in tokens]
        together[dtype] = outputs(engine, tokens, case.kind)
        for rows in (together[dtype], np.concatenate(one_by_one)):
            if case.kind == "token_classification":
                compare_logits(rows, case.expected, LOGITS_F32 if dtype == "float32" else 2 * LOGITS_BF16)
            else:
                compare(rows, case.expected, F32 if dtype == "float32" else BF16_WIDE)
    name = family_name(spec.architecture) or spec.architecture
    TABLE.note(f"torch, {name}", "other outputs", largest(together["float32"], case.expected))


@pytest.mark.parametrize("name", [name for name, folder in FOLDERS.items() if folder.kind == "sparse"])
def test_every_pooling_of_terms_is_that_of_sentence_transformers(name: str, built: Builder, tmp_path: Path) -> None:
    checkpoint = resolve(str(FOLDERS[name].write(tmp_path)))
    spec = read_spec(checkpoint)
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    tokens = tokenizer.encode_now(TEXTS, EncodeOptions())
    arrays = load_file(EXPECTED)
    assert np.concatenate([item.ids for item in tokens]).tolist() == arrays[f"{name}:ids"].tolist()
    rows = outputs(built(checkpoint, spec, engine="torch", dtype="float32").engine, tokens, "sparse")
    expected = np.zeros_like(rows)
    np.put(expected, arrays[f"{name}:at"], arrays[f"{name}:values"])
    compare(rows, expected, F32)


@pytest.mark.parametrize("name", ["first-module-in-0_BERT", "router-in-folders"])
def test_the_transformer_may_be_in_a_folder_of_its_own(name: str, built: Builder, tmp_path: Path) -> None:
    checkpoint = resolve(str(FOLDERS[name].write(tmp_path)))
    spec = read_spec(checkpoint)
    path = checkpoint.folder / checkpoint.first_module / "tokenizer.json"
    tokens = TextTokenizer(path, max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size).encode_now(
        TEXTS, EncodeOptions()
    )
    rows = built(checkpoint, spec, engine="torch", dtype="float32").engine.forward(Batch.pack(tokens))
    vectors = Embed(TEXTS, normalize=spec.normalize).finish(rows)
    compare(vectors, load_file(EXPECTED)[f"{name}:vectors"], F32)


@pytest.mark.parametrize("engine", ["torch", "tensorrt_llm"])
@pytest.mark.parametrize("name", ["cross-encoder-pooled", "cross-encoder-pooled-sigmoid"])
def test_modules_give_the_scores_of_a_cross_encoder(name: str, engine: str, built: Builder, tmp_path: Path) -> None:
    checkpoint = resolve(str(FOLDERS[name].write(tmp_path)))
    spec, pairs = read_spec(checkpoint), [Pair(*pair) for pair in PAIRS]
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    rows = built(checkpoint, spec, engine=engine, dtype="float32").engine.forward(
        Batch.pack(tokenizer.encode_now(pairs, EncodeOptions()))
    )
    assert spec.classifier is not None
    scores = Classify(pairs, EncodeOptions(), spec.classifier.scoring).finish(rows)
    assert np.abs(scores[:, 0] - load_file(EXPECTED)[f"{name}:scores"]).max() < 1e-4


def outputs(engine: Engine, tokens: list[Tokens], kind: str) -> Rows:
    """The rows of sequences (SPLADE) or of tokens."""
    if kind == "sparse":
        return engine.forward(Batch.pack(tokens))
    rows, of_tokens = engine.forward_tokens(Batch.pack(tokens))
    assert rows.shape == (len(tokens), engine.info.row_width)
    assert of_tokens.shape[1] == engine.info.token_width
    return of_tokens


@pytest.mark.parametrize(("name", "case"), on_each_engine(EMBEDDERS))
def test_vectors_in_bf16_are_within_tolerance(name: str, case: Case, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint), engine=name).engine
    rows = engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids)) for ids in case.ids]))
    assert engine.info.precision == "bf16"
    compare(rows, case.raw, BF16_WIDE)


@pytest.mark.parametrize(("name", "case"), on_each_engine(CLASSIFIERS))
def test_logits_in_bf16_are_within_tolerance(name: str, case: ClassificationCase, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    engine = built(checkpoint, read_spec(checkpoint), engine=name).engine
    tokens = [Tokens(ids, type_ids) for ids, type_ids in zip(case.ids, case.type_ids, strict=True)]
    compare_logits(engine.forward(Batch.pack(tokens)), case.logits, 2 * LOGITS_BF16)


@pytest.mark.parametrize("name", ["torch", "tensorrt_llm"])
def test_pooling_excludes_the_prompt(name: str, built: Builder) -> None:
    (case,) = (case for case in CASES if case.name == EXCLUDED)
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    opened = built(checkpoint, spec, engine=name, dtype="float32")
    tokenizer = TextTokenizer(opened.tokenizer, max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    tokens = tokenizer.encode_now(case.texts, EncodeOptions(prompt=case.prompt, pool_prompt=False))
    assert [item.ids.tolist() for item in tokens] == [ids.tolist() for ids in case.ids]
    assert all(item.skip for item in tokens)
    compare(opened.engine.forward(Batch.pack(tokens)), case.raw, F32)


@pytest.mark.parametrize("case", OTHERS[:3], ids=str)
def test_an_unsupported_family_is_refused_and_the_error_names_the_others(case: Case, built: Builder) -> None:
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    with pytest.raises(
        UnsupportedModelError, match=rf"does not run {spec.architecture}.*--engine torch or --engine openvino"
    ):
        built(checkpoint, spec)


def test_every_required_family_has_a_case() -> None:
    embedding = {family_name(case.architecture) for case in EMBEDDERS}
    scoring = {family_name(case.architecture) for case in CLASSIFIERS}
    required = {"Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Bert", "Roberta", "XLMRoberta"}
    assert required <= embedding
    assert required <= scoring


def test_every_required_family_has_models_for_the_fused_attention_of_tensorrt_llm() -> None:
    """Other heads would end the process. Gemma 2 has soft-capped scores, so its attention is torch's."""
    fused = set()
    cases: list[Case | ClassificationCase] = [*HEAD_CASES, *HEAD_CLASSIFICATION_CASES]
    for case in cases:
        facts = facts_of(read_spec(resolve(str(case.folder))))
        check_model(facts, "bfloat16")
        if any(sizes.is_plain for sizes in attention_of(facts).values()):
            fused.add((family_name(case.architecture), type(case)))
    required = {
        "Llama",
        "Qwen2",
        "Qwen3",
        "Gemma3",
        "Bert",
        "Roberta",
        "XLMRoberta",
        "Camembert",
        "Electra",
        "DistilBert",
    }
    assert fused >= {(family, kind) for family in required for kind in (Case, ClassificationCase)}
    assert ("Mistral", ClassificationCase) in fused  # the embedding model has a sliding window
