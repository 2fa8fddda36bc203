"""Engine folders built and loaded by the command line in separate processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from bei_core.engines.manifest import verify
from tests.conftest import MINILM
from tests.golden.cases import GOLDEN, load_minilm
from tests.gpu_path.conftest import IS_REAL, SHIMS

ROOT = Path(__file__).resolve().parents[2]
MISTRAL = GOLDEN / "mistral-window-last"


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs `bei` in a process of its own."""
    places = [str(ROOT / "packages"), *([] if IS_REAL else [str(SHIMS)])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "BEI_CACHE_DIR": str(home / "cache")}
    command = [sys.executable, "-W", "ignore", "-m", "bei_core.cli", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=True)


def vectors(home: Path, model: str, *texts: str) -> np.ndarray:
    """The vectors of texts from a fresh process."""
    said = run("embed", "--engine", "tensorrt_llm", "--model-id", model, *texts, home=home)
    assert "at the first start on a GPU chooses kernels" in said.stderr
    return np.array([json.loads(line) for line in said.stdout.splitlines()])


def build(checkpoint: Path, home: Path) -> Path:
    """Builds an engine folder by `bei build`."""
    folder = home / "engine"
    options = ("--engine", "tensorrt_llm", "--model-id", str(checkpoint), "--output", str(folder))
    said = run("build", *options, home=home)
    assert said.stdout.strip() == str(folder)
    manifest = verify(folder)
    assert (manifest.engine, manifest.precision) == ("tensorrt_llm", "bf16")
    return folder


def test_a_random_mistral_gives_every_fresh_process_the_same_vectors(tmp_path: Path) -> None:
    folder = build(MISTRAL, tmp_path)
    assert not (folder / ".tuned").exists()
    first = vectors(tmp_path, str(folder), "a map is a promise", "and most maps break it")
    (kept,) = (path for path in (folder / ".tuned").iterdir() if path.name != "verified.json")
    second = vectors(tmp_path, str(folder), "a map is a promise", "and most maps break it")
    assert first.shape == (2, 32)
    assert np.array_equal(first, second)
    # One file per GPU and version, beside what says that every file was checked.
    assert {path.name for path in (folder / ".tuned").iterdir()} == {kept.name, "verified.json"}
    assert (
        "whole, " in run("engines", "verify", str(folder), home=tmp_path).stdout
    )  # the saved kernels do not count as damage


def test_minilm_is_the_minilm_of_sentence_transformers_in_every_fresh_process(tmp_path: Path) -> None:
    expected = load_minilm()
    chosen = [at for at, text in enumerate(expected.texts[:60]) if not text.startswith("-")]
    texts = [expected.texts[at] for at in chosen]
    folder = build(MINILM, tmp_path)
    first, second = (vectors(tmp_path, str(folder), *texts) for _ in range(2))
    assert np.array_equal(first, second)
    assert (first * expected.vectors[chosen]).sum(1).min() > 0.999  # in bf16
