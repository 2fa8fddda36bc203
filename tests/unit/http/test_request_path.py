"""The number of functions and files that one request passes; docs/structures.md has the figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the script needs the qualified names of Python 3.11")
def test_an_embedding_passes_at_most_35_functions_in_11_files() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "count_request_path.py")]
    path = f"{REPOSITORY / 'packages'}:{REPOSITORY}"
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=True)
    found = re.match(r"(\d+) functions in (\d+) files", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) <= 35
    assert int(found[2]) <= 11
