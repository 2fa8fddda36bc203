"""A data set for the tests of jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = ["the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"i{index}", "text": f"{WORDS[index % 12]} {WORDS[index // 12]} {index}"} for index in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
