"""Starts the engine of a folder: in this process, or in a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.manifest import Manifest, read_manifest, read_spec
from bei_core.engines.process import EngineProcess
from bei_core.engines.registry import OPENVINO, TORCH, load_loader
from bei_core.errors import EngineCorruptError
from bei_core.logs import configure_logging

log = logging.getLogger(__name__)

Start: TypeAlias = Callable[[Path, str], Engine]  # (folder, dtype)
Options: TypeAlias = Mapping[str, Mapping[str, object]]  # of each engine, arguments of its `load`


def start_here(folder: Path, dtype: str, options: Options = MappingProxyType({})) -> Engine:
    """The engine in a folder, in this process.

    Raises CheckpointError for a folder that is no engine, EngineCorruptError for a damaged one, EngineUnavailableError.
    """
    manifest = read_manifest(folder)
    given = options.get(manifest.engine, {})
    return load_loader(manifest.engine)(folder, read_spec(folder), manifest, dtype=dtype, **given)


def start_for(settings: Settings, *, for_job: bool = False) -> Start:
    """The function that starts an engine as the settings say; `for_job` is that of `open_engine`."""
    options: dict[str, dict[str, object]] = {
        TORCH: {
            "devices": tuple(map(int, settings.devices)),
            "tensor_parallel": settings.tensor_parallel_size,
            "compiled": settings.torch_compile,
        }
    }
    if not settings.engine_process:
        if for_job:  # not for another process, which gets one batch at a time
            options[OPENVINO] = {"for_job": True}
        return partial(start_here, options=options)
    start = partial(_start_there, json_output=settings.json_output, log_level=settings.log_level)
    return lambda folder, dtype: EngineProcess(partial(start, folder, dtype, options, read_manifest(folder)))


def _start_there(
    folder: Path, dtype: str, options: Options, manifest: Manifest, *, json_output: bool, log_level: str
) -> Engine:
    """As `start_here`, in a new process, whose logging is not set up.

    Raises EngineCorruptError if the folder has another manifest than the server has checked.
    """
    configure_logging(json_output=json_output, level=log_level)
    if read_manifest(folder) != manifest:
        raise EngineCorruptError(f"{folder} was replaced by another engine; start the server again to serve it")
    return start_here(folder, dtype, options)


def check_options(settings: Settings, engine: str) -> None:
    """Log a warning if settings of the torch engine are given for another one."""
    if engine != TORCH and (settings.devices or settings.tensor_parallel_size > 1):
        log.warning("devices and tensor_parallel_size have no effect with engine %s", engine)
