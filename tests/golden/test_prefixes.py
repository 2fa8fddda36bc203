"""Shared prefixes: texts with the same first tokens get what they get alone, and these tokens are computed once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.openvino.engine import OpenVinoEngine
from bei_core.engines.openvino.graph import build_graph, shares_prefixes
from bei_core.engines.prefixes import MIN_LENGTH
from bei_core.models.families import family_of
from bei_core.models.spec import read_spec
from bei_core.tasks import EncodeOptions, Tokens
from bei_core.text.templates import named_template
from bei_core.text.tokenizer import TextTokenizer
from tests.golden.cases import CASES, CLASSIFICATION_CASES, GROUP_CASES, GROUP_CLASSIFICATION_CASES, OUTPUT_CASES
from tests.golden.engines import spec_of

FOLDERS = {case.folder.name: case.folder for case in (*CASES, *GROUP_CASES)} | {
    case.folder.name: case.folder for case in (*CLASSIFICATION_CASES, *GROUP_CLASSIFICATION_CASES)
}
SHARING = sorted(name for name, folder in FOLDERS.items() if shares_prefixes(spec_of(folder)))


@cache
def engine_of(folder: Path) -> OpenVinoEngine:
    checkpoint = resolve(str(folder))
    spec = read_spec(checkpoint)
    return OpenVinoEngine(build_graph(spec, checkpoint), spec, "f32")


def text(*ids: int, skip: int = 0) -> Tokens:
    return Tokens(np.array(ids, np.int32), np.zeros(len(ids), np.int32), skip)


def check(engine: OpenVinoEngine, texts: list[Tokens]) -> None:
    """The batch gives the rows, and the rows of tokens, that each text gets alone."""
    batch = Batch.pack(texts)
    alone = [Batch.pack([item]) for item in texts]
    if engine.info.row_width:
        wanted = np.concatenate([engine.forward(each) for each in alone])
        np.testing.assert_allclose(engine.forward(batch), wanted, rtol=1e-5, atol=1e-5)
    if engine.info.token_width:
        wanted = np.concatenate([engine.forward_tokens(each)[1] for each in alone])
        np.testing.assert_allclose(engine.forward_tokens(batch)[1], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SHARING)
def test_texts_with_the_same_first_tokens_get_what_they_get_alone(name: str) -> None:
    engine = engine_of(FOLDERS[name])
    random = np.random.default_rng(0)
    prefixes = [random.integers(3, 290, length) for length in (40, 24)]
    texts = [text(*prefixes[i % 2], *random.integers(3, 290, i % 7 * 4 + 1)) for i in range(12)]
    texts += [text(*prefixes[0]), text(*prefixes[1][:20]), text(*random.integers(3, 290, 30))]
    texts += [text(*prefixes[0], 7, skip=3), text(*prefixes[0], 7, 8, 9, skip=42)]
    check(engine, texts)
    assert engine.num_shared_tokens() > 350  # of 5 or more texts each; about 40 and 24 tokens
    assert 0 <= engine.padding_share() < 0.5


def test_rerankers_embedders_and_sliding_windows_are_among_the_models_that_share() -> None:
    assert {"qwen3-rerank-seq-cls", "qwen3-embedding", "mistral-window-last", "llama-reward-pad-is-eos"} <= {*SHARING}


def test_only_causal_models_share() -> None:
    specs = {name: spec_of(folder) for name, folder in FOLDERS.items()}
    causal = {name for name, spec in specs.items() if family_of(spec.architecture).layout.is_causal(spec.config)}
    assert {*SHARING} < causal < {*specs}  # the mean of a prefix would need the vectors of all its tokens


@settings(max_examples=25)
@given(
    prefix=st.integers(MIN_LENGTH, 60),
    items=st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(0, 4), max_size=20)), min_size=1, max_size=12),
)
@pytest.mark.parametrize("name", ["mistral-window-last", "llama-reward-pad-is-eos"])
def test_any_texts_get_what_they_get_alone(name: str, prefix: int, items: list[tuple[int, list[int]]]) -> None:
    first = list(range(10, 10 + prefix))
    check(engine_of(FOLDERS[name]), [text(*(first[:length] + rest or [3])) for length, rest in items])


def test_documents_behind_a_template_share_the_template_and_the_query() -> None:
    (folder,) = (case.folder for case in OUTPUT_CASES if case.name == "qwen3-yes-no-tied")
    checkpoint, template = resolve(str(folder)), named_template("qwen3-reranker")
    spec = msgspec.structs.replace(read_spec(checkpoint, template=template), max_seq_len=1024)
    engine = OpenVinoEngine(build_graph(spec, checkpoint), spec, "f32")
    tokenizer = TextTokenizer(folder / "tokenizer.json", max_seq_len=1024, vocab_size=spec.vocab_size)
    pairs = [template.fill("what is a page?", document) for document in ("a leaf", "one side", "a boy", "")]
    tokens = tokenizer.encode_now(pairs, EncodeOptions())
    check(engine, tokens)
    batch = Batch.pack(tokens)
    engine.forward(batch)
    before_document = len(template.template.partition("{document}")[0]) // 8
    assert engine.num_shared_tokens() > 3 * before_document
