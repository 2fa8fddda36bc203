"""`bei doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version

import click

from bei_core.config.settings import Settings
from bei_core.engines.registry import CPU, ENGINES, choose, find_gpu, require
from bei_core.errors import BeiError


@click.command()
def command() -> None:
    """Print what this machine can run, with which versions, and what each engine lacks."""
    facts: dict[str, Callable[[], object]] = {
        "bei": lambda: version("bei-core"),
        "python": lambda: sys.version.split()[0],
        "openvino": lambda: version("openvino"),
        "processors": _processors,
        "precision of dtype auto": _precision,
        "gpu": _gpu,
        **{f"engine {name}": lambda name=name: _lacks(name) or "ready" for name in ENGINES},  # type: ignore[misc]
        "engine of auto": lambda: choose("auto"),
        "cache": lambda: Settings.load({}, os.environ).cache_dir,
    }
    for name, fact in facts.items():
        click.echo(f"{name:<24} {_said(fact)}")


def _said(fact: Callable[[], object]) -> str:
    """What a fact says, or in one line why it cannot be known: a broken installation is what doctor is for."""
    try:
        return str(fact())
    except BeiError as error:
        return f"unknown: {error}"
    except Exception as error:
        return f"unknown: {type(error).__name__}: {' '.join(str(error).split())}"


def _lacks(engine: str) -> str | None:
    """What an engine needs and does not have here; None if it can run."""
    kind, gpu = ENGINES[engine], find_gpu()
    reasons = ["no NVIDIA GPU is found"] if gpu is None and kind.min_capability is not None else []
    try:
        require(engine)
        if engine == CPU:
            _precision()  # that the package is there does not mean that it can be imported
    except Exception as error:
        reasons.append(" ".join(str(error).split()))
    if not reasons and gpu is not None and (reason := kind.reason_against(gpu)) is not None:
        reasons.append(reason)
    return f"cannot run: {'; '.join(reasons)}" if reasons else None


def _processors() -> int:
    from bei_core.engines.openvino.engine import usable_cpus

    return usable_cpus()


def _precision() -> str:
    from bei_core.engines.openvino.engine import precision_for

    return precision_for("auto")


def _gpu() -> str:
    gpu = find_gpu()
    return "none" if gpu is None else f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
