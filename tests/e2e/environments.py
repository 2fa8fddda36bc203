"""The environments of their own that scripts/test_envs.sh makes, and programs run in them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRUSS = Path(os.environ.get("BEI_TRUSS_PYTHON") or ROOT / ".venv-truss" / "bin" / "python").parents[1]
TRUSS_SERVER = ROOT / ".venv-truss-server"
CLIENTS = ROOT / ".venv-clients"


def python_of(venv: Path) -> str:
    """The environment's interpreter; fails without one, skips where no Python of this machine can have it."""
    unavailable = venv / "unavailable"
    if unavailable.is_file():
        pytest.skip(unavailable.read_text().strip())
    python = venv / "bin" / "python"
    if not python.exists():
        pytest.fail(f"there is no {python}; make it with scripts/test_envs.sh")
    return str(python)


def run_in(
    venv: Path, program: Sequence[str | Path], *, given: str = "", environ: Mapping[str, str] | None = None
) -> str:
    """What a program of another environment prints. Raises AssertionError with what it says when it fails.

    `program` is what follows `python`: a file or -c and code, then arguments.
    """
    command = [python_of(venv), *map(str, program)]
    environ = {**os.environ, **(environ or {})}
    done = subprocess.run(command, input=given, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
