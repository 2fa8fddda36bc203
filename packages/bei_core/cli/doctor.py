"""`bei doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version

import click

from bei_core.config.settings import Settings
from bei_core.engines.registry import ENGINES, OPENVINO, candidates, find_gpu, require
from bei_core.errors import BeiError


@click.command()
def command() -> None:
    """Print what this machine can run, with which versions, and what each engine lacks."""
    facts: dict[str, Callable[[], object]] = {
        "bei": lambda: version("bei-core"),
        "python": lambda: sys.version.split()[0],
        "openvino": lambda: version("openvino"),
        "processors": _processors,
        "instructions": _instructions,
        "precision of dtype auto": _precision,
        "gpu": _gpu,
        **{f"engine {name}": lambda name=name: _state(name) for name in ENGINES},  # type: ignore[misc]
        "engine of auto": lambda: ", else ".join(candidates("auto")),
        "cache": lambda: Settings.load({}, os.environ).cache_dir,
    }
    for name, fact in facts.items():
        click.echo(f"{name:<24} {_said(fact)}")


def _said(fact: Callable[[], object]) -> str:
    """A fact as text, or the reason why it is unknown, in one line: doctor also works for a broken installation."""
    try:
        return str(fact())
    except BeiError as error:
        return f"unknown: {error}"
    except Exception as error:
        return f"unknown: {type(error).__name__}: {' '.join(str(error).split())}"


def _state(engine: str) -> str:
    """Whether an engine can run on this machine, and if not, why."""
    kind, gpu = ENGINES[engine], find_gpu()
    no_gpu = "no NVIDIA GPU is found" if gpu is None and kind.min_capability is not None else None
    reason_against = no_gpu if gpu is None else kind.reason_against(gpu) or kind.fault()
    reasons = [no_gpu if not kind.runs_without_gpu else None, _fault(engine)]
    if any(reasons):
        return f"cannot run: {'; '.join(filter(None, reasons))}"
    if reason_against is None:
        return "ready"
    if kind.runs_without_gpu:
        return f"ready{' on the CPU' if gpu is None else ''}, but auto does not choose it: {reason_against}"
    return f"cannot run: {reason_against}"


def _fault(engine: str) -> str | None:
    """Why an engine's package cannot be used; None if it can."""
    try:
        require(engine)
        if engine == OPENVINO:
            _precision()  # an installed package may still fail to import
    except Exception as error:
        return " ".join(str(error).split())
    return None


def _processors() -> int:
    from bei_core.engines.openvino.engine import usable_cpus

    return usable_cpus()


def _instructions() -> str:
    """Those on which the speed of the CPU engine depends most, from the oldest to the newest."""
    from bei_core.engines.openvino.processor import cpu_flags

    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = cpu_flags()
    return ", ".join(name for name in known if name in flags) or "unknown"


def _precision() -> str:
    from bei_core.engines.openvino.engine import precision_for

    return precision_for("auto")


def _gpu() -> str:
    gpu = find_gpu()
    return "none" if gpu is None else f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
