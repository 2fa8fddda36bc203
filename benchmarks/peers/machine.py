"""The machine: whether it is quiet, who used its processors, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

import psutil

from benchmarks.inprocess import gemm_peak

T = TypeVar("T")

MAX_OTHERS_SHARE = 0.10  # of the CPU time of all processors, for other processes during a timed run
_MAX_WAIT_S = 20


def peaks() -> dict[str, float]:
    """GFLOP/s (int8: GOP/s) of one large matmul in OpenVINO, by precision; without bf16 if the processor has none."""
    return {precision: gemm_peak(precision) for precision in ("f32", "int8", *(["bf16"] if has_bf16() else []))}


def has_bf16() -> bool:
    """Whether the processor computes in bf16. Without, torch emulates it, many times slower than f32."""
    return "bf16" in Path("/proc/cpuinfo").read_text()


def busy_seconds() -> float:
    """CPU time of all processes since boot, without I/O wait."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process and of its descendants, running and ended."""
    living = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    return float(sum(os.times()[:4]) + living)


def others_share(busy: float, own: float, seconds: float) -> float:
    """Share of all processors that other processes used, from the CPU time of all and our own in `seconds`."""
    return max(0.0, busy - own) / (seconds * (os.cpu_count() or 1))


def wait_for_quiet() -> None:
    """Waits for a second in which the machine is idle, at most 20 seconds."""
    for waited in count():
        before = busy_seconds()
        time.sleep(1)
        if others_share(busy_seconds() - before, 0.0, 1.0) < MAX_OTHERS_SHARE or waited == _MAX_WAIT_S:
            return


def undisturbed(measure: Callable[[], T]) -> tuple[T, float]:
    """(result of `measure`, share of the CPU time that others used meanwhile); measured twice if they used much."""
    value, share = _shared(measure)
    if share >= MAX_OTHERS_SHARE:
        print(f"    other processes used {share:.0%} of the CPU time: measuring again", flush=True)
        value, share = _shared(measure)
    return value, share


def _shared(measure: Callable[[], T]) -> tuple[T, float]:
    """(result of `measure`, which begins when the machine is quiet; share of the CPU time that others used)."""
    wait_for_quiet()
    busy, own, start = busy_seconds(), own_seconds(), time.perf_counter()
    value = measure()
    return value, others_share(busy_seconds() - busy, own_seconds() - own, time.perf_counter() - start)
