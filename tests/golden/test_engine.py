"""Every golden checkpoint, built into an engine folder and loaded back from it, against sentence-transformers' rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from openvino import Model

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened
from bei_core.models.spec import read_spec
from bei_core.tasks import Embed, EncodeOptions, Rows, Tokens
from bei_core.text.tokenizer import TextTokenizer
from tests.golden import engines
from tests.golden.cases import CASES, Case
from tests.golden.tolerance import BF16, F32, Tolerance, compare

EXCLUDED = "bert-prompt-excluded"  # a prompt left out of the mean, which its token ids alone do not say
SERVED = [case for case in CASES if case.name != EXCLUDED]
TOLERANCES = {"float32": F32, "bfloat16": BF16}


@dataclass(frozen=True)
class Built:
    """A case's engine, and what it made of the case's tokens."""

    opened: Opened
    together: Rows  # all texts in one batch
    alone: Rows  # each in a batch of its own
    tolerance: Tolerance


def tokens_of(case: Case) -> list[Tokens]:
    return [Tokens(ids, np.zeros_like(ids)) for ids in case.ids]


@pytest.fixture(scope="session")
def built(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Built]:
    """Builds each case once."""
    root = tmp_path_factory.mktemp(f"engines-{dtype}")
    known: dict[str, Built] = {}

    def make(case: Case) -> Built:
        if case.name not in known:
            checkpoint = resolve(str(case.folder))
            opened, tokens = (
                engines.built(checkpoint, read_spec(checkpoint), root / case.name, dtype=dtype),
                tokens_of(case),
            )
            alone = [opened.engine.forward(Batch.pack([item])) for item in tokens]
            together = opened.engine.forward(Batch.pack(tokens))
            known[case.name] = Built(opened, together, np.concatenate(alone), TOLERANCES[dtype])
        return known[case.name]

    return make


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_a_batch_of_all_texts_gives_the_expected_rows(case: Case, built: Callable[[Case], Built]) -> None:
    engine = built(case)
    compare(engine.together, case.raw, engine.tolerance)


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_each_text_alone_gives_the_expected_row(case: Case, built: Callable[[Case], Built]) -> None:
    engine = built(case)
    compare(engine.alone, case.raw, engine.tolerance)


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_a_batch_gives_each_text_what_it_gets_alone(case: Case, built: Callable[[Case], Built]) -> None:
    engine = built(case)
    compare(engine.together, engine.alone, engine.tolerance)


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_finished_rows_are_the_vectors_of_sentence_transformers(case: Case, built: Callable[[Case], Built]) -> None:
    engine = built(case)
    task = Embed(case.texts, normalize=engine.opened.spec.normalize)
    compare(task.finish(engine.together), case.vectors, engine.tolerance)


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_other_batches_in_another_order_give_the_same_rows(case: Case, built: Callable[[Case], Built]) -> None:
    engine = built(case)
    order = np.random.default_rng(3).permutation(len(case.ids))
    tokens = tokens_of(case)
    for part in np.split(order, [3, 8]):  # batches of 3, 5 and the rest: an engine may round the number of texts up
        rows = engine.opened.engine.forward(Batch.pack([tokens[index] for index in part]))
        compare(rows, case.raw[part], engine.tolerance)


@pytest.mark.parametrize("case", SERVED[::6], ids=str)
def test_the_same_batch_gives_the_same_bits(case: Case, built: Callable[[Case], Built]) -> None:
    engine = built(case)
    again = engine.opened.engine.forward(Batch.pack(tokens_of(case)))
    assert again.tobytes() == engine.together.tobytes()


def test_rows_are_the_callers_and_not_the_next_batchs(built: Callable[[Case], Built]) -> None:
    case = SERVED[0]
    engine = built(case).opened.engine
    first = engine.forward(Batch.pack(tokens_of(case)[:4]))
    kept = first.copy()
    engine.forward(Batch.pack(tokens_of(case)[4:8]))
    assert np.array_equal(first, kept)
    assert first.flags.owndata
    assert first.dtype == np.float32


def test_an_engine_says_what_it_is(built: Callable[[Case], Built], dtype: str) -> None:
    for case in SERVED[::8]:
        info = built(case).opened.engine.info
        assert (info.row_width, info.max_seq_len) == (case.dimension, case.max_seq_length)
        assert info.compute_type == {"float32": "cpu+f32", "bfloat16": "cpu+bf16"}[dtype]


def test_only_an_engine_in_bf16_computes_residual_sums_in_bf16(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = list[Model]()
    monkeypatch.setattr("bei_core.engines.openvino.changes.keep_only_last_sum_wide", changed.append)
    checkpoint = resolve(str(SERVED[0].folder))
    engines.built(checkpoint, read_spec(checkpoint), tmp_path / "engine", dtype=dtype).close()
    assert len(changed) == (dtype == "bfloat16")


def test_the_share_of_padding_is_of_the_last_batch(built: Callable[[Case], Built]) -> None:
    case = SERVED[0]
    engine = built(case).opened.engine
    engine.forward(Batch.pack([Tokens(np.full(24, 5, np.int32), np.zeros(24, np.int32))]))
    assert engine.padding_share() == 0.25  # 24 of a row of 32
    engine.forward(Batch.pack([Tokens(np.full(16, 5, np.int32), np.zeros(16, np.int32))]))
    assert engine.padding_share() == 0.0


def test_a_prompt_is_left_out_of_the_mean_where_the_model_says_so(dtype: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == EXCLUDED)
    checkpoint = resolve(str(case.folder))
    spec = read_spec(checkpoint)
    engine = engines.built(checkpoint, spec, tmp_path / "engine", dtype=dtype).engine
    tokenizer = TextTokenizer(case.folder / "tokenizer.json", max_seq_len=spec.max_seq_len, vocab_size=spec.vocab_size)
    tokens = tokenizer.encode_now(case.texts, EncodeOptions(prompt=case.prompt, pool_prompt=spec.pools_prompt))
    assert [item.ids.tolist() for item in tokens] == [ids.tolist() for ids in case.ids]
    compare(engine.forward(Batch.pack(tokens)), case.raw, TOLERANCES[dtype])
