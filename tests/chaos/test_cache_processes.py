"""Processes that share a cache: many at once, killed at any moment, damaged disks, no network."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bei_core.config.settings import Settings
from bei_core.engines.manifest import verify
from bei_core.engines.open import build_engine, open_engine
from bei_core.errors import EngineCorruptError
from tests.fakes import SAFETY_S
from tests.golden.cases import CASES
from tests.hub import Hub

ROOT = Path(__file__).resolve().parents[2]
MODEL = CASES[0].folder
PROCESS = [sys.executable, "-m", "tests.chaos.cache_process"]


def environment(cache: Path, **more: str) -> dict[str, str]:
    paths = f"{ROOT / 'packages'}{os.pathsep}{ROOT}"
    return {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "BEI_CACHE_DIR": str(cache), **more}


def start(environ: Mapping[str, str], *prefix: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, *PROCESS, "open"], env=environ, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=SAFETY_S)
    assert process.returncode == 0, output
    return output


def rows(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("row ")]


@pytest.mark.parametrize("num_processes", [4, pytest.param(8, marks=pytest.mark.long)])
def test_processes_that_start_on_an_empty_cache_build_once(tmp_path: Path, num_processes: int) -> None:
    environ = environment(tmp_path, BEI_MODEL_ID=str(MODEL))
    outputs = [finish(process) for process in [start(environ) for _ in range(num_processes)]]
    assert sum(output.count("engine built") for output in outputs) == 1
    assert [output.count("engine loaded") for output in outputs] == [1] * num_processes
    assert len({row for output in outputs for row in rows(output)}) == 1


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_a_start_works_after_a_kill_at_any_moment(tmp_path: Path, kills: int) -> None:
    environ = environment(tmp_path, BEI_MODEL_ID=str(MODEL))
    done = subprocess.run(
        [*PROCESS, "kill", "11", str(kills)],
        env=environ,
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=3 * SAFETY_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [line for line in done.stdout.splitlines() if line.startswith("trial ")]
    assert sum("killed" in line for line in trials) == kills, trials
    assert all(line.endswith("left 0") for line in trials), trials
    assert len(set(rows(done.stdout))) == 1


def test_a_flipped_byte_in_any_file_is_found_before_the_engine_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.load({"model_id": str(MODEL), "cache_dir": tmp_path}, {})
    folder = build_engine(settings)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(names) == 5
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 0x01
        (folder / name).write_bytes(content)
        with pytest.raises(EngineCorruptError, match=f"engine corrupt: {folder / name}"):
            verify(folder)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            open_engine(settings).close()
        said = [record.getMessage() for record in caplog.records]
        assert [text.split()[1] for text in said if text.startswith("engine ")] == ["corrupt:", "built", "loaded"], said
        assert f"engine corrupt: {folder / name}" in " ".join(said)
        verify(folder)


def test_a_model_that_was_asked_for_before_starts_without_any_network(tmp_path: Path) -> None:
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("a network namespace cannot be made on this machine")
    files = {
        path.relative_to(MODEL).as_posix(): path.read_bytes()
        for path in MODEL.rglob("*")
        if path.is_file() and path.name != "expected.safetensors"
    }
    with Hub() as hub:
        commit = hub.add("owner/name", files)
        environ = environment(
            tmp_path / "cache", BEI_MODEL_ID="owner/name", HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hub")
        )
        first = finish(start(environ))
    assert "found the engine of" not in first
    shutil.rmtree(tmp_path / "hub")
    again = finish(start(environ, *alone))
    assert f"found the engine of owner/name at {commit}" in again
    assert rows(again) == rows(first)
    refused = start(dict(environ, BEI_REFRESH="true"), *alone)
    output, _ = refused.communicate(timeout=SAFETY_S)
    assert refused.returncode != 0
    assert "Network is unreachable" in output, "the namespace has a network after all"
