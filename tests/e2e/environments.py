"""The environments that scripts/test_envs.sh makes, and programs that run in them."""

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
CLIENTS_VENDORS = ROOT / ".venv-clients-vendors"
NODE = ROOT / "tests" / "e2e" / "node"


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
    return _output([python_of(venv), *map(str, program)], given, {**os.environ, **(environ or {})})


def run_in_node(program: str, given: str = "") -> str:
    """What a program in Node prints; it is a file of tests/e2e/node, or code. Fails and skips as `python_of` does."""
    unavailable = NODE / "node_modules" / "unavailable"
    if unavailable.is_file():
        pytest.skip(unavailable.read_text().strip())
    if not unavailable.parent.is_dir():
        pytest.fail(f"there is no {unavailable.parent}; make it with scripts/test_envs.sh")
    what = [str(NODE / program)] if program.endswith(".mjs") else ["--input-type=module", "--eval", program]
    return _output(["node", *what], given, dict(os.environ))


def _output(command: Sequence[str], given: str, environ: Mapping[str, str]) -> str:
    done = subprocess.run(command, input=given, env=environ, cwd=NODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
