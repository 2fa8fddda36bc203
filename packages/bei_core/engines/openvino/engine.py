"""The CPU engine: a compiled graph and the layout it takes its batches in."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import openvino

from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.openvino.graph import ROWS, TOKENS
from bei_core.engines.openvino.packing import Grid, lay_out
from bei_core.engines.openvino.quantize.convolve import convolve
from bei_core.errors import EngineUnavailableError
from bei_core.models.spec import ModelSpec

MODEL = "model.xml"  # with model.bin: OpenVINO's own format, for any processor

# Beyond about this many tokens a batch gains nothing on two cores (docs/decisions/004-packed-rows.md).
BATCH_TOKENS = 1024

# A row as wide as a vocabulary needs as much memory for every token; beyond this width batches are smaller.
_WIDE, _WIDE_BATCH_TOKENS = 8192, 256

Array: TypeAlias = npt.NDArray[np.float32]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def precision_for(dtype: str) -> str:
    """What the CPU computes in for a `dtype` setting: bf16 for `auto` where the processor has it, else f32.

    Of a quantised model (`int8`) it is what the rest of it computes in.

    Raises EngineUnavailableError for a dtype that this processor, or this engine, does not compute in.
    """
    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = ("bf16" if has_bf16 else "f32") if dtype in {"auto", "int8"} else _PRECISIONS.get(dtype)
    if precision is None or (precision == "bf16" and not has_bf16):
        offered = "auto, int8, float32" + (", bfloat16" if has_bf16 else "")
        raise EngineUnavailableError(
            f"the CPU engine does not compute in {dtype} on this processor; it offers {offered}"
        )
    return precision


def multiplies_int8() -> bool:
    """Whether the processor adds products of int8 up in 32 bits: x86 with VNNI or AMX, or Arm."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return True
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return True
    return flags is None or not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(flags.group(1).split())


def compile_properties(precision: str) -> dict[str, object]:
    """OpenVINO's settings: all processors on one batch, since one batch at a time runs."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": usable_cpus(),
        "ENABLE_CPU_PINNING": False,  # the event loop needs a processor too, and may take any
    }


def usable_cpus() -> int:
    """Processors this process may use: its affinity, and its control group's quota where there is one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed


class OpenVinoEngine:
    """A model on the CPU, of a file whose weights stay mapped, so that processes share their pages, or of a graph.

    `quantised` says that its products are in int8, whatever `precision` the rest computes in; without VNNI they are
    convolved, which a graph keeps.
    """

    def __init__(
        self, model: Path | openvino.Model, spec: ModelSpec, precision: str, *, quantised: bool = False
    ) -> None:
        core, made = openvino.Core(), model
        try:
            if quantised and not multiplies_int8():
                made = core.read_model(model) if isinstance(model, Path) else model
                convolve(made)
            compiled = core.compile_model(made, "CPU", compile_properties(precision))
        except RuntimeError as fault:
            raise EngineUnavailableError(f"{model} cannot be loaded here: {fault}; build it again") from fault
        self._request = compiled.create_infer_request()
        widths = {port.any_name: int(port.partial_shape[1].get_length()) for port in compiled.outputs}
        self._pad_id = int(spec.config.get("pad_token_id") or 0)
        self._padding_share = 0.0
        self.info = EngineInfo(
            name="openvino",
            device="cpu",
            precision="int8" if quantised else precision,
            row_width=widths.get(ROWS, 0),
            max_seq_len=spec.max_seq_len,
            batch_tokens=_WIDE_BATCH_TOKENS if widths.get(ROWS, 0) > _WIDE else BATCH_TOKENS,
            token_width=widths.get(TOKENS, 0),
        )

    def forward(self, batch: Batch) -> Array:
        """f32[B, D]; see `Engine.forward`."""
        self._infer(batch)
        return self._rows(len(batch))

    def forward_tokens(self, batch: Batch) -> tuple[Array, Array]:
        """f32[B, D] and f32[T, E]; see `Engine.forward_tokens`."""
        grid = self._infer(batch)
        tokens: Array = self._request.get_tensor(TOKENS).data[grid.targets]
        return self._rows(len(batch)), tokens

    def _infer(self, batch: Batch) -> Grid:
        grid = lay_out(batch, pad_id=self._pad_id)
        self._padding_share = grid.padding_share
        self._request.infer(grid.arrays(), share_inputs=True)
        return grid

    def _rows(self, num_texts: int) -> Array:
        """A copy of the last batch's rows, since the tensor is the next batch's too."""
        if not self.info.row_width:
            return np.empty((num_texts, 0), np.float32)
        return np.array(self._request.get_tensor(ROWS).data[:num_texts])

    def padding_share(self) -> float:
        """Share (0 to 1) of the last batch's grid that was padding."""
        return self._padding_share

    def close(self) -> None:
        """Drops the compiled model."""
        del self._request


def load(folder: Path, spec: ModelSpec, manifest: Manifest, *, dtype: str) -> OpenVinoEngine:
    """The engine of an engine folder, computing in `dtype`.

    Raises EngineUnavailableError where the processor does not.
    """
    return OpenVinoEngine(folder / MODEL, spec, precision_for(dtype), quantised=manifest.precision == "int8")
