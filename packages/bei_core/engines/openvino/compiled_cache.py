"""The compiled models of an engine folder, in its `.tuned/`, so that a later start need not transform the graph again.

Weights that the plugin does not change stay in model.bin. What the plugin wrote is used only by the same version of
OpenVINO, on the same kind of processor, with the same settings and files, and only if the model that is read from it
computes for a small batch, bit for bit, what the model that was written computed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino

from bei_core.engines.manifest import TUNED, Manifest, key_of
from bei_core.engines.openvino.compiled import Array, core
from bei_core.engines.openvino.processor import kernel_facts
from bei_core.storage.cache import TEMP_SUFFIX, write_atomically

Probe: TypeAlias = "Callable[[openvino.CompiledModel], Sequence[Array]]"

log = logging.getLogger(__name__)

# Part of the file's name. Increment it when a graph is changed in another way after it is read, or the probe changes.
_VERSION = 5

# Larger files are not written: the plugin has changed so many weights that they would be in memory twice.
_MAX_BYTES = 32 << 20

# The content of the file if what the plugin writes is of no use. A file that is empty was damaged by a power loss.
_OF_NO_USE = b"OpenVINO cannot store this model in a way that is of use: each start compiles it.\n"

_DIGEST_BYTES = 32

# When a file is written, older ones are deleted: those that no start has used for so long, such as those of earlier
# versions or of processors that are gone, and the unfinished ones of processes that were killed.
_MAX_AGE_S = 30 * 24 * 3600
_MAX_UNFINISHED_AGE_S = 3600


class CompiledCache:
    """The file of one compiled model: the SHA-256 of the rest, that of the probe's arrays, and what the plugin wrote.

    A probe runs a compiled model on a small batch. It is the first thing that a model runs, at each start: the first
    batches decide how the plugin packs weights, and so the last bits of all later results. The file is `_OF_NO_USE` if
    an earlier start found that.
    """

    def __init__(self, model: Path, manifest: Manifest, properties: Mapping[str, object]) -> None:
        """`model` is the file of the graph in the folder of `manifest`. Raises OSError if it cannot be read."""
        self._weights, self._properties = model.with_suffix(".bin"), properties
        stats = [path.stat() for path in (model, self._weights)]
        facts = {
            "version": _VERSION,
            "openvino": openvino.get_version(),
            "processor": kernel_facts(),
            "properties": properties,
            "engine": manifest.artifact,
            "files": [(manifest.files.get(path.name), path.name) for path in (model, self._weights)],
            "written": [(each.st_size, each.st_mtime_ns) for each in stats],  # a repaired file often has another time
        }
        self._path = model.parent / TUNED / f"compiled-{key_of(facts)}.blob"

    def load(self, probe: Probe) -> openvino.CompiledModel | None:
        """The compiled model after `probe`; None if it is not there, or cannot be used."""
        try:
            content = self._path.read_bytes()
            if content == _OF_NO_USE:
                return None
            if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
                raise RuntimeError("its digest is wrong")
            compiled = self._imported(content[2 * _DIGEST_BYTES :])
            if _computes(content[_DIGEST_BYTES : 2 * _DIGEST_BYTES], probe, compiled):
                self._mark_used()
                return compiled
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError) as fault:  # ValueError: text that is not UTF-8
            log.warning("%s is not used, and the model is compiled: %s", self._path, _reason(fault))
            return None
        log.info("OpenVINO cannot store the compiled model of %s, so each start compiles it", self._path.parent)
        self._write(_OF_NO_USE)
        return None

    def store(self, compile_: Callable[[], openvino.CompiledModel], probe: Probe) -> openvino.CompiledModel:
        """Compiles a model, stores it for the next start, and returns it after `probe`.

        Without permission or space, the log says why it is not stored. Raises what `compile_` and `probe` raise.
        """
        compiled = compile_()
        computed = _digest_of(probe, compiled)
        if self._is_of_no_use() or not self._can_write():
            return compiled
        self._delete_old_files()
        content = compiled.export_model().getvalue()
        if len(content) > _MAX_BYTES:
            self._write(_OF_NO_USE)
        else:
            content = computed + content
            self._write(hashlib.sha256(content).digest() + content)
        return compiled

    def _is_of_no_use(self) -> bool:
        try:
            with self._path.open("rb") as file:
                return file.read(len(_OF_NO_USE) + 1) == _OF_NO_USE
        except OSError:
            return False

    def _mark_used(self) -> None:
        with suppress(OSError):  # another user's file, or one on a disk that cannot be written
            os.utime(self._path)

    def _delete_old_files(self) -> None:
        now = time.time()
        for pattern, max_age_s in (("compiled-*", _MAX_AGE_S), (f".*{TEMP_SUFFIX}", _MAX_UNFINISHED_AGE_S)):
            for path in self._path.parent.glob(pattern):
                with suppress(OSError):  # another process has deleted it, or it belongs to another user
                    if now - path.stat().st_mtime > max_age_s:
                        path.unlink()

    def _imported(self, content: bytes) -> openvino.CompiledModel:
        """Raises RuntimeError or ValueError if OpenVINO cannot read it."""
        return core().import_model(content, "CPU", {**self._properties, "WEIGHTS_PATH": str(self._weights)})

    def _can_write(self) -> bool:
        """Whether the folder takes a new file. An empty one is created, and deleted at once.

        A look at permissions would not do: root passes it, and on a read-only mount and a full disk everyone does.
        """
        with self._explained():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._path.parent):
                return True
        return False

    def _write(self, content: bytes) -> None:
        with self._explained():
            write_atomically(self._path, content)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Suppresses an OSError, and says in the log what it means."""
        try:
            yield
        except OSError as fault:
            log.info(
                "the compiled model is not stored, and each start compiles it until %s can be written: %s",
                self._path.parent,
                _reason(fault),
            )


def _reason(fault: Exception) -> str:
    """The text of an error in one line, without the path. OpenVINO's texts have several lines."""
    text = fault.strerror if isinstance(fault, OSError) else None
    return text or " ".join(str(fault).split())


def _digest_of(probe: Probe, compiled: openvino.CompiledModel) -> bytes:
    """SHA-256 of the arrays of `probe`."""
    return hashlib.sha256(b"".join(map(np.ndarray.tobytes, probe(compiled)))).digest()


def _computes(expected: bytes, probe: Probe, compiled: openvino.CompiledModel) -> bool:
    """Whether the arrays of `probe` have this digest; False also if they are shorter than its batch."""
    try:
        return _digest_of(probe, compiled) == expected
    except IndexError:
        return False
