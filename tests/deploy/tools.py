"""The programs that check deploy/; scripts/deploy_tools.sh installs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / ".deploy-tools"
SCHEMAS = TOOLS / "schemas"  # of Kubernetes' resources


def find(name: str) -> str:
    """The path of a program; skips the test if it is not installed."""
    found = shutil.which(name, path=f"{TOOLS / 'bin'}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"there is no {name}; scripts/deploy_tools.sh installs it")
    return found


def run(name: str, *arguments: str | Path, given: str | None = None, cwd: Path = DEPLOY) -> str:
    """What a program prints on standard output. Raises AssertionError with all that it prints if it fails."""
    done = subprocess.run(
        [find(name), *map(str, arguments)], input=given, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
