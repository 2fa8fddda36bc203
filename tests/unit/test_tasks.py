"""Post-processing of a model's rows."""

from __future__ import annotations

import numpy as np
import pytest

from bei_core.errors import ValidationError
from bei_core.tasks import (
    Embed,
    EmbedAll,
    EmbedSparse,
    EncodeOptions,
    Rank,
    Rows,
    Several,
    Sparse,
    asks_for,
    best_first,
    l2_normalize,
    scores,
)


def rows(*values: tuple[float, ...]) -> Rows:
    return np.array(values, np.float32)


def test_sigmoid_is_exact_and_does_not_overflow() -> None:
    got = scores(rows((0.0, 2.0, -2.0, 1e4, -1e4)), "sigmoid")[0]
    np.testing.assert_allclose(got, [0.5, 0.880797, 0.119203, 1.0, 0.0], rtol=1e-5, atol=1e-30)


def test_softmax_sums_to_one_and_does_not_overflow() -> None:
    got = scores(rows((1.0, 2.0, 3.0), (1e4, -1e4, 1e4)), "softmax")
    np.testing.assert_allclose(got[0], [0.0900306, 0.2447285, 0.6652410], rtol=1e-5)
    np.testing.assert_allclose(got[1], [0.5, 0.0, 0.5])


def test_raw_scores_are_the_logits() -> None:
    logits = rows((-3.0, 7.5))
    assert scores(logits, "none") is logits


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    values = np.array([0.1, 0.9, 0.5, 0.9, 0.1], np.float32)
    assert best_first(values) == [1, 3, 2, 0, 4]
    assert best_first(values, 2) == [1, 3]


def test_dimensions_are_cut_before_normalising() -> None:
    task = Embed(["a"], dimensions=2)
    np.testing.assert_allclose(task.finish(rows((3.0, 4.0, 12.0))), [(0.6, 0.8)], rtol=1e-6)


def test_a_row_of_zeros_stays_one() -> None:
    np.testing.assert_array_equal(l2_normalize(rows((0.0, 0.0))), [(0.0, 0.0)])


def test_without_normalize_the_row_is_the_models() -> None:
    given = rows((3.0, 4.0))
    np.testing.assert_array_equal(Embed(["a"], normalize=False).finish(given), given)


@pytest.mark.parametrize("dimensions", [0, -1, 4])
def test_dimensions_outside_the_model_are_refused(dimensions: int) -> None:
    with pytest.raises(ValidationError, match="between 1 and 3"):
        Embed(["a"], dimensions=dimensions).finish(rows((1.0, 2.0, 3.0)))


def test_pairs_are_ranked_by_logits_where_every_sigmoid_is_1() -> None:
    logits = np.array([[24.6], [28.0], [57.0], [23.9], [44.0], [25.0]], np.float32)
    task = Rank(["pair"] * 6, EncodeOptions(), "sigmoid", top_n=3)
    assert task.finish(logits) == [(2, 1.0), (4, 1.0), (1, 1.0)]


def test_a_term_has_the_largest_weight_of_its_tokens_and_none_has_zero() -> None:
    terms = Sparse.of_tokens(np.array([7, 3, 7, 9, 3, 0], np.int32), np.array([0.25, 0, 0.5, 0.125, 0, 2], np.float32))
    assert (terms.indices.tolist(), terms.values.tolist()) == ([0, 7, 9], [2, 0.5, 0.125])
    kept = EmbedSparse(["a"], unweighted_ids=(0, 9)).finish([terms])[0]
    assert (kept.indices.tolist(), kept.values.tolist()) == ([7], [0.5])
    assert Sparse.of_tokens(np.array([3], np.int32), np.zeros(1, np.float32)).indices.tolist() == []


def test_several_tasks_share_one_encoding_and_each_gets_its_own_output() -> None:
    options = EncodeOptions(truncate=False)
    task = Several((Embed(["a", "b"], options), EmbedAll(["a", "b"], options, num_skipped=1)))
    assert (task.inputs, task.options, task.output) == (["a", "b"], options, ("rows", "tokens"))
    assert [asks_for(task.output, output) for output in ("rows", "tokens", "sparse")] == [True, True, False]
    vectors, of_tokens = task.finish([(rows((3, 4))[0], rows((1,), (2,))), (rows((0, 2))[0], rows((5,)))])
    np.testing.assert_allclose(vectors, [(0.6, 0.8), (0, 1)], rtol=1e-6)
    assert [each.tolist() for each in of_tokens] == [[[2]], []]


def test_chunks_that_cannot_be_combined_are_refused_before_the_model_runs() -> None:
    options = EncodeOptions(chunk=True)
    for make in (
        lambda: EmbedAll(["a"], options),
        lambda: EmbedSparse(["a"], options),
        lambda: Several((Embed(["a"], options),)),
    ):
        with pytest.raises(ValidationError, match="`chunk` works for dense embeddings and for scores only"):
            make()
