"""`make golden` keeps stored outputs that differ only by rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from scripts.golden.expected import save, save_json
from tests.golden.checkpoints import Description

ROWS = np.array([[1.0, -2.0, 30.0]], np.float32)
IDS = np.array([1, 2, 3], np.int32)
CASE = Description("case", "base", "embedding", 0, "BertModel", "", "", {}, "bert", {}, family="bert")


@pytest.mark.parametrize(
    ("now", "is_kept"),
    [
        ({"rows": ROWS + np.float32(1e-5), "ids": IDS}, True),
        ({"rows": ROWS + np.float32(1e-2), "ids": IDS}, False),
        ({"rows": ROWS, "ids": IDS + 1}, False),
        ({"rows": ROWS[:, :2], "ids": IDS}, False),
        ({"rows": ROWS.astype(np.float16), "ids": IDS}, False),
        ({"rows": ROWS}, False),
    ],
)
def test_arrays_that_differ_by_rounding_are_kept(tmp_path: Path, now: dict[str, np.ndarray], is_kept: bool) -> None:
    before = {"rows": ROWS, "ids": IDS}
    save(tmp_path, [(CASE, before)])
    assert save(tmp_path, [(CASE, now)]) == (int(is_kept), [] if is_kept else ["case"])
    stored = load_file(tmp_path / "base" / "bert.safetensors")
    expected = {f"case:{name}": value for name, value in (before if is_kept else now).items()}
    assert stored.keys() == expected.keys()
    assert all(stored[name].dtype == expected[name].dtype for name in stored)
    assert all(np.array_equal(stored[name], expected[name]) for name in stored)


@pytest.mark.parametrize(
    ("now", "is_kept"),
    [
        ([{"word": "a", "score": 0.500001}], True),
        ([{"word": "a", "score": 0.51}], False),
        ([{"word": "b", "score": 0.5}], False),
        ([{"word": "a", "score": 0.5}] * 2, False),
    ],
)
def test_entities_that_differ_by_rounding_are_kept(tmp_path: Path, now: object, is_kept: bool) -> None:
    path, before = tmp_path / "entities.json", {"case": [{"word": "a", "score": 0.5}]}
    save_json(path, before)
    save_json(path, {"case": now})
    assert json.loads(path.read_text()) == (before if is_kept else {"case": now})


def test_a_removed_case_is_deleted_from_the_file(tmp_path: Path) -> None:
    other = Description("other", "base", "embedding", 1, "BertModel", "", "", {}, "bert", {}, family="bert")
    save(tmp_path, [(CASE, {"ids": IDS}), (other, {"ids": IDS})])
    assert save(tmp_path, [(other, {"ids": IDS})]) == (1, [])
    assert load_file(tmp_path / "base" / "bert.safetensors").keys() == {"other:ids"}
