"""The processor: its features, and what decides which kernels OpenVINO chooses on it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from bei_core.engines.openvino.compiled import core

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# Variables that change which instructions oneDNN uses, or how it rounds. It also reads them with the prefix DNNL_.
_KERNEL_VARIABLES = ("MAX_CPU_ISA", "CPU_ISA_HINTS", "DEFAULT_FPMATH_MODE")


def cpu_flags() -> frozenset[str]:
    """The features of the processor by their names in /proc/cpuinfo, such as amx_int8 or asimd; empty if unknown."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(flags.group(1).split() if flags else ())


def has_int8_dot_product() -> bool:
    """Whether the processor multiplies int8 with 32-bit accumulation: x86 with VNNI or AMX, or Arm.

    True also if /proc/cpuinfo does not say it.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return True
    flags = cpu_flags()
    return not flags or not flags.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def kernel_facts() -> dict[str, object]:
    """What decides which kernels compute a model, and so the last bits of its results.

    The name is not enough: hypervisors give processors of several generations the same one, such as "AMD EPYC".
    """
    return {
        "name": core().get_property("CPU", "FULL_DEVICE_NAME"),
        "capabilities": core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        "features": sorted(cpu_flags()),
        "caches": _caches(),
        "variables": {
            name: os.environ[name]
            for variable in _KERNEL_VARIABLES
            for prefix in ("ONEDNN_", "DNNL_")
            if (name := prefix + variable) in os.environ
        },
    }


def _caches() -> list[tuple[str, str]]:
    """Size of each cache of the first processor, and the processors that share it; empty if unknown."""
    try:
        return [
            ((folder / "size").read_text().strip(), (folder / "shared_cpu_list").read_text().strip())
            for folder in sorted(_CACHES.glob("index*"))
        ]
    except OSError:
        return []
