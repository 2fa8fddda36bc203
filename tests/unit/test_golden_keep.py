"""Which expectations of an earlier run are kept when the goldens are written again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from scripts.golden.keep import expectations, keep

ROWS = np.array([[1.0, -2.0, 30.0]], np.float32)
IDS = np.array([1, 2, 3], np.int32)


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
def test_tensors_that_differ_by_rounding_are_kept(tmp_path: Path, now: dict[str, np.ndarray], is_kept: bool) -> None:
    path = tmp_path / "case" / "expected.safetensors"
    path.parent.mkdir()
    path.write_bytes(before := save({"rows": ROWS, "ids": IDS}))
    earlier = expectations(tmp_path)
    path.write_bytes(after := save(now))
    assert keep(earlier) == is_kept
    assert path.read_bytes() == (before if is_kept else after)


@pytest.mark.parametrize(
    ("now", "is_kept"),
    [
        ([{"word": "a", "score": 0.500001}], True),
        ([{"word": "a", "score": 0.51}], False),
        ([{"word": "b", "score": 0.5}], False),
        ([{"word": "a", "score": 0.5}] * 2, False),
    ],
)
def test_so_are_entities(tmp_path: Path, now: object, is_kept: bool) -> None:
    path = tmp_path / "aggregation.json"
    path.write_text(json.dumps([{"word": "a", "score": 0.5}]))
    earlier = expectations(tmp_path)
    path.write_text(json.dumps(now))
    assert keep(earlier) == is_kept


def test_a_case_that_is_gone_stays_gone(tmp_path: Path) -> None:
    path = tmp_path / "expected.safetensors"
    path.write_bytes(save({"ids": IDS}))
    earlier = expectations(tmp_path)
    path.unlink()
    assert keep(earlier) == 0
    assert not path.exists()
