"""The compiled models of an engine folder, in its `.tuned/`, so that a later start need not transform the graph again.

Weights that the plugin does not change stay in model.bin. What the plugin wrote is used only by the same version of
OpenVINO, on the same kind of processor, with the same settings and files, and only if the model that is read from it
computed the same as the model that was written.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino

from bei_core.engines.manifest import TUNED, Manifest, key_of
from bei_core.engines.openvino.compiled import Array, core
from bei_core.storage.cache import write_atomically

Probe: TypeAlias = "Callable[[openvino.CompiledModel], Sequence[Array]]"

log = logging.getLogger(__name__)

# Part of the file's name. Increment it when a graph is changed in another way after it is read.
_VERSION = 3

# Larger files are not written: the plugin has changed so many weights that they would be in memory twice.
_MAX_BYTES = 32 << 20

_DIGEST_BYTES = 32


class CompiledCache:
    """The file of one compiled model: the SHA-256 of what the plugin wrote, and that. Empty if it cannot be stored."""

    def __init__(self, model: Path, manifest: Manifest, properties: Mapping[str, object]) -> None:
        """`model` is the file of the graph in the folder of `manifest`. Raises OSError if it cannot be read."""
        self._weights, self._properties = model.with_suffix(".bin"), properties
        stats = [path.stat() for path in (model, self._weights)]
        facts = {
            "version": _VERSION,
            "openvino": openvino.get_version(),
            "processor": [
                core().get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
            ],
            "properties": properties,
            "engine": manifest.artifact,
            "files": [(manifest.files.get(path.name), path.name) for path in (model, self._weights)],
            "written": [(each.st_size, each.st_mtime_ns) for each in stats],  # a repaired file has another time
        }
        self._path = model.parent / TUNED / f"compiled-{key_of(facts)}.blob"

    @property
    def is_known_to_fail(self) -> bool:
        """Whether `open` found earlier that the compiled model cannot be stored."""
        try:
            return self._path.stat().st_size == 0
        except OSError:
            return False

    def load(self) -> openvino.CompiledModel | None:
        """The compiled model; None if it is not there, or cannot be used."""
        try:
            content = self._path.read_bytes()
            if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
                raise RuntimeError("its digest is wrong")
            return self._imported(content[_DIGEST_BYTES:])
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as fault:
            log.warning("%s is not used, and the model is compiled: %s", self._path, fault)
            return None

    def store(self, compile_: Callable[[], openvino.CompiledModel], probe: Probe) -> openvino.CompiledModel:
        """Compiles a model and stores it for the next start, if the model read from the file gives the same arrays.

        `probe` runs a compiled model. Two models are never in memory at once. Without permission or space, the model is
        compiled only, as at each later start, and the log says why. Raises what `compile_` raises.

        The model that comes back has run nothing, as at the next start: the first batches decide how the plugin packs
        weights, and so the last bits of all later results.
        """
        compiled = compile_()
        if not self._can_write(0):
            return compiled
        content = compiled.export_model().getvalue()
        if len(content) <= _MAX_BYTES:
            if not self._can_write(len(content)):
                return compiled
            expected = probe(compiled)
            del compiled
            if self._is_equal(content, probe, expected):
                self._write(hashlib.sha256(content).digest() + content)
                return self._imported(content)
            log.info("OpenVINO cannot store the compiled model of %s, so each start compiles it", self._path.parent)
            compiled = compile_()
        self._write(b"")
        return compiled

    def _is_equal(self, content: bytes, probe: Probe, expected: Sequence[Array]) -> bool:
        """Whether `probe` gives the expected arrays for the model that is read from `content`."""
        try:
            return all(map(np.array_equal, probe(self._imported(content)), expected))
        except (RuntimeError, IndexError):  # IndexError: an output is too short
            return False

    def _imported(self, content: bytes) -> openvino.CompiledModel:
        """Raises RuntimeError if OpenVINO cannot read it."""
        return core().import_model(content, "CPU", {**self._properties, "WEIGHTS_PATH": str(self._weights)})

    def _can_write(self, num_bytes: int) -> bool:
        """Whether the folder takes a new file of this size. The file is written, and deleted at once.

        A look at permissions would not do: root passes it, and on a read-only mount and a full disk everyone does.
        """
        with self._explained():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._path.parent) as file:
                file.write(bytes(num_bytes))
                file.flush()
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
                fault.strerror or fault,
            )
