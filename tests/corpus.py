"""The inputs of `tests/data/fuzz`: those that broke something once, and those that are known to break such readers."""

from __future__ import annotations

from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "data" / "fuzz"


def kept(kind: str) -> pytest.MarkDecorator:
    """Runs a test for each input of a kind: `content` is its bytes, and the test is named after its file."""
    files = sorted((CORPUS / kind).iterdir())
    return pytest.mark.parametrize("content", [pytest.param(file.read_bytes(), id=file.name) for file in files])
