"""The compiled models of an engine folder, in its `.tuned/`, so that a later start need not transform the graph again.

Weights that the plugin does not change stay in model.bin. What the plugin wrote is used only by the same version of
OpenVINO, on the same kind of processor, with the same settings and files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import openvino

from bei_core.engines.manifest import TUNED, Manifest, key_of
from bei_core.engines.openvino.compiled import core
from bei_core.storage.cache import write_atomically

log = logging.getLogger(__name__)

# Part of the file's name. Increment it when a graph is changed in another way after it is read.
_VERSION = 1

# Larger files are not kept: the plugin has changed so many weights that they would be in memory twice.
_MAX_BYTES = 32 << 20

_DIGEST_BYTES = 32


class CompiledCache:
    """The file of one compiled model: the SHA-256 of what the plugin wrote, and that."""

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

    def load(self) -> openvino.CompiledModel | None:
        """The compiled model; None if it is not there, or cannot be used."""
        try:
            content = self._path.read_bytes()
            if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
                raise RuntimeError("its digest is wrong")
            properties = {**self._properties, "WEIGHTS_PATH": str(self._weights)}
            return core().import_model(content[_DIGEST_BYTES:], "CPU", properties)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as fault:
            log.warning("%s is not used, and the model is compiled: %s", self._path, fault)
            return None

    def save(self, compiled: openvino.CompiledModel) -> None:
        """Keep a compiled model for the next start. Without permission or space, the next start compiles again."""
        content = compiled.export_model().getvalue()
        if len(content) > _MAX_BYTES:
            return
        try:
            write_atomically(self._path, hashlib.sha256(content).digest() + content)
        except OSError as fault:
            log.debug("the compiled model is not kept in %s: %s", self._path, fault)
