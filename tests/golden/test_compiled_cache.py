"""The compiled model of an engine folder is kept for the next start, and not used for anything else."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import openvino
import pytest

from bei_core.checkpoint import resolve
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import TUNED, verify
from bei_core.engines.open import load
from bei_core.engines.openvino import compiled_cache, engine, processor
from bei_core.engines.openvino.compiled import Graphs
from bei_core.engines.openvino.engine import MODEL, OpenVinoEngine
from bei_core.errors import EngineCorruptError, EngineUnavailableError
from bei_core.models.spec import read_spec
from bei_core.tasks import Rows, Tokens
from tests import disks
from tests.golden.cases import GOLDEN
from tests.golden.engines import built

NAMES = ("bert-cls-normalize", "gemma2-multilingual", "qwen3-yes-no-tied")


def file_of(folder: Path) -> Path:
    (found,) = (folder / TUNED).glob("compiled-*")
    return found


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were compiled."""
    found: list[Path] = []

    def compile_(
        engine: OpenVinoEngine, graph: object, real: Callable[..., object] = OpenVinoEngine._compile
    ) -> object:
        found.append(Path(str(engine._model)))
        return real(engine, graph)

    monkeypatch.setattr(OpenVinoEngine, "_compile", compile_)
    return found


def rows(folder: Path) -> Rows:
    opened = load(folder)
    ids = np.arange(1, 40, dtype=np.int32)
    found = opened.engine.forward(Batch.pack([Tokens(ids, np.zeros_like(ids)), Tokens(ids[:7], np.zeros(7, np.int32))]))
    opened.close()
    return found


def engine_of(name: str, folder: Path, dtype: str = "float32") -> Path:
    checkpoint = resolve(str(GOLDEN / name))
    built(checkpoint, read_spec(checkpoint), folder, dtype=dtype).close()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_second_start_compiles_nothing_and_gives_the_same_rows(
    name: str, dtype: str, tmp_path: Path, compiled: list[Path]
) -> None:
    folder = engine_of(name, tmp_path / "engine", dtype)
    kept = rows(folder)
    assert compiled == [folder / MODEL]  # by `built`
    file_of(folder).unlink()
    np.testing.assert_array_equal(kept, rows(folder))
    assert compiled == 2 * [folder / MODEL]


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[openvino.CompiledModel]:
    """The compiled models that ran the probe."""
    found = list[openvino.CompiledModel]()

    def probe(
        engine: OpenVinoEngine,
        compiled: openvino.CompiledModel,
        real: Callable[..., list[Rows]] = OpenVinoEngine._probe,
    ) -> list[Rows]:
        found.append(compiled)
        return real(engine, compiled)

    monkeypatch.setattr(OpenVinoEngine, "_probe", probe)
    return found


def test_each_start_runs_the_probe_first_and_uses_the_model_that_ran_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: list[openvino.CompiledModel]
) -> None:
    """The first batches decide how weights are packed, and so the last bits of later results."""
    used = list[openvino.CompiledModel]()

    def graphs(compiled: openvino.CompiledModel, pad_id: int) -> Graphs:
        used.append(compiled)
        return Graphs(compiled, pad_id)

    monkeypatch.setattr(engine, "Graphs", graphs)
    folder = engine_of(NAMES[0], tmp_path / "engine")
    for expected in (1, 2):  # compiled, and then read from the file
        assert len(probed) == expected
        assert all(each is probed[-1] for each in used)  # the first is the probe's own
        used.clear()
        rows(folder)


def test_a_compiled_model_of_another_file_is_not_used(tmp_path: Path, compiled: list[Path]) -> None:
    folder = engine_of(NAMES[0], tmp_path / "engine")
    os.utime(folder / "model.bin", ns=(0, 1))
    rows(folder)
    assert len(compiled) == 2


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1] + b"?", lambda content: b""], ids=["a byte", "a power loss"]
)
def test_a_damaged_compiled_model_is_compiled_again(
    tmp_path: Path, compiled: list[Path], caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    folder = engine_of(NAMES[0], tmp_path / "engine")
    file = file_of(folder)
    file.write_bytes(damage(file.read_bytes()))
    expected = rows(folder)
    assert "is not used, and the model is compiled: its digest is wrong" in caplog.text
    assert len(compiled) == 2
    np.testing.assert_array_equal(expected, rows(folder))
    assert len(compiled) == 2


@pytest.mark.parametrize(
    "fault",
    [RuntimeError("Exception from core.cpp:\nno tag\n\n"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")],
)
def test_a_compiled_model_that_openvino_cannot_read_is_compiled_again_and_the_log_says_so_in_one_line(
    tmp_path: Path,
    compiled: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
) -> None:
    folder = engine_of(NAMES[0], tmp_path / "engine")

    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr(compiled_cache.CompiledCache, "_imported", refuse)
    rows(folder)
    assert len(compiled) == 2
    (line,) = lines_about_tuned(caplog)
    assert re.search(r"is not used, and the model is compiled: .*(core.cpp: no tag|no text)$", line)
    assert "\n" not in line


def write_back(file: Path, content: bytes) -> None:
    """As `cp -p` and `rsync -a` write: the time of modification stays."""
    times = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("check", [load, verify], ids=["a start", "bei engines verify"])
@pytest.mark.parametrize("is_stored", [True, False])
def test_a_model_compiled_from_a_damaged_file_is_not_used_when_the_file_is_repaired(
    tmp_path: Path, compiled: list[Path], check: Callable[[Path], object], is_stored: bool
) -> None:
    """The stored model has copies of small and of changed weights, and the probe does not need all of them."""
    folder = engine_of(NAMES[0], tmp_path / "engine")
    if not is_stored:
        shutil.rmtree(folder / TUNED)
    weights = folder / "model.bin"
    content = weights.read_bytes()
    middle = len(content) // 2  # in a matrix
    write_back(weights, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(EngineCorruptError, match=r"model\.bin does not have the digest"):
        check(folder)
    write_back(weights, content)
    compiled.clear()
    for _ in range(2):  # the second start uses what the first one stored
        rows(folder)
        assert compiled == [folder / MODEL]


@pytest.mark.parametrize("different", ["features", "caches", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE"])
def test_a_compiled_model_is_of_a_processor_and_not_of_all_with_its_name(
    tmp_path: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch, different: str
) -> None:
    folder = engine_of(NAMES[0], tmp_path / "engine")
    file = file_of(folder)
    with monkeypatch.context() as patch:
        if different.isupper():
            patch.setenv(different, "DEFAULT")
        elif different == "features":
            patch.setattr(processor, "cpu_flags", lambda: frozenset({"avx2"}))
        else:
            patch.setattr(processor, "_caches", lambda: [("48K", "0")])
        rows(folder)
        assert len(compiled) == 2
    assert file in (folder / TUNED).iterdir()
    rows(folder)
    assert len(compiled) == 2, "the file of this processor is still there"


def test_a_start_that_stores_a_compiled_model_deletes_what_no_start_uses(tmp_path: Path, compiled: list[Path]) -> None:
    folder = engine_of(NAMES[0], tmp_path / "engine")
    os.utime(file_of(folder), (0, 0))
    ages = {
        ".killed.tmp": 2 * 3600,
        ".running.tmp": 60,
        "compiled-unused.blob": 31 * 24 * 3600,
        "compiled-used.blob": 29 * 24 * 3600,
        "other": 31 * 24 * 3600,
    }
    for name, age_s in ages.items():
        (folder / TUNED / name).touch()
        os.utime(folder / TUNED / name, (time.time() - age_s,) * 2)
    rows(folder)  # uses the file of this processor, so it is not old any more
    assert set(ages) < {path.name for path in (folder / TUNED).iterdir()}
    os.utime(folder / MODEL, ns=(0, 1))
    rows(folder)
    assert len(compiled) == 2
    left = {path.name for path in (folder / TUNED).iterdir()}
    assert set(ages) & left == {".running.tmp", "compiled-used.blob", "other"}
    assert len(left) == 5, "with the compiled models of both times of the file"


def test_a_compiled_model_that_is_too_large_is_not_kept(
    tmp_path: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_cache, "_MAX_BYTES", 1000)
    folder = engine_of(NAMES[0], tmp_path / "engine")
    assert file_of(folder).stat().st_size < 1000
    monkeypatch.setattr(openvino.CompiledModel, "export_model", None)  # a later start does not try it again
    rows(folder)
    assert len(compiled) == 2


def test_a_first_batch_that_fails_names_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without AVX2, OpenVINO has no kernel for some layers."""
    folder = engine_of(NAMES[0], tmp_path / "engine")

    def fail(*_: object) -> None:
        raise RuntimeError("bad combination")

    monkeypatch.setattr(Graphs, "infer", fail)
    with pytest.raises(EngineUnavailableError, match=f"cannot load the engine {folder / MODEL}: bad combination"):
        load(folder)


def lines_about_tuned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if TUNED in record.message and record.levelno >= logging.INFO]


def test_a_start_from_a_folder_that_cannot_be_written_only_compiles_and_says_so_once(
    tmp_path: Path, compiled: list[Path], probed: list[openvino.CompiledModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = engine_of(NAMES[0], tmp_path / "engine")
    kept = rows(folder)
    shutil.rmtree(folder / TUNED)
    (folder / TUNED).symlink_to("/proc")  # where not even root can create a file
    compiled.clear()
    probed.clear()
    caplog.clear()
    found = rows(folder)
    assert (len(compiled), len(probed)) == (1, 1)
    np.testing.assert_array_equal(found, kept)
    (line,) = lines_about_tuned(caplog)
    assert line.startswith("the compiled model is not stored, and each start compiles it until")
    assert f"{folder / TUNED} can be" in line


def test_a_start_from_a_full_disk_only_compiles_and_says_so_once(
    tmp_path: Path,
    compiled: list[Path],
    probed: list[openvino.CompiledModel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    folder = engine_of(NAMES[0], tmp_path / "engine")
    kept = rows(folder)
    shutil.rmtree(folder / TUNED)
    compiled.clear()
    probed.clear()
    caplog.clear()
    monkeypatch.setattr(disks, "CAPACITY", 32 << 10)
    with disks.small_disk(folder / TUNED):
        found = rows(folder)
        assert not list((folder / TUNED).glob("*compiled*"))
    assert (len(compiled), len(probed)) == (1, 1)
    np.testing.assert_array_equal(found, kept)
    (line,) = lines_about_tuned(caplog)
    assert re.search(disks.FULL, line)


def test_an_engine_starts_if_the_disk_is_full_only_when_the_compiled_model_is_written(
    tmp_path: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compiled_cache, "write_atomically", refuse)
    caplog.set_level(logging.INFO)
    rows(engine_of(NAMES[0], tmp_path / "engine"))
    assert len(compiled) == 2
    assert all(line.endswith("can be written: No space left on device") for line in lines_about_tuned(caplog))
    assert len(lines_about_tuned(caplog)) == 2


def test_a_compiled_model_that_computes_something_else_when_it_is_read_is_not_kept(
    tmp_path: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(engine_of(NAMES[0], tmp_path / "expected"))
    compiled.clear()
    probes = count()
    monkeypatch.setattr(OpenVinoEngine, "_probe", lambda engine, compiled: [np.array([next(probes)])])
    folder = engine_of(NAMES[0], tmp_path / "engine")
    assert len(compiled) == 1
    np.testing.assert_array_equal(rows(folder), expected)
    assert len(compiled) == 2, "the model that was read computed something else"
    np.testing.assert_array_equal(rows(folder), expected)
    assert len(compiled) == 3
    assert next(probes) == 4, "a later start does not try it again"
