"""The CPU engine: runs a compiled OpenVINO graph on packed rows."""

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
from bei_core.engines.openvino.packing import PackedRows, pack_rows
from bei_core.engines.openvino.quantize.convolution import matmuls_to_convolutions
from bei_core.engines.openvino.stored import drop_mapped_pages, keep_weights_narrow
from bei_core.errors import EngineUnavailableError
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Tokens

MODEL = "model.xml"  # beside model.bin: OpenVINO's own format, for any processor

# Larger batches give no more throughput on two cores (docs/decisions/004-packed-rows.md).
BATCH_TOKENS = 1024

# A model with rows as wide as a vocabulary (SPLADE) computes that many logits per token: smaller batches save memory.
_WIDE, _WIDE_BATCH_TOKENS = 8192, 256

Array: TypeAlias = npt.NDArray[np.float32]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def precision_for(dtype: str) -> str:
    """The precision ("f32" or "bf16") for a `dtype` setting; `auto` gives bf16 if the processor has it, else f32.

    For `int8` it is the precision of the layers that are not quantised. Raises EngineUnavailableError for a dtype that
    this processor or this engine does not support.
    """
    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = ("bf16" if has_bf16 else "f32") if dtype in {"auto", "int8"} else _PRECISIONS.get(dtype)
    if precision is None or (precision == "bf16" and not has_bf16):
        offered = "auto, int8, float32" + (", bfloat16" if has_bf16 else "")
        raise EngineUnavailableError(
            f"the CPU engine does not compute in {dtype} on this processor; it offers {offered}"
        )
    return precision


def has_int8_dot_product() -> bool:
    """Whether the processor multiplies int8 with 32-bit accumulation: x86 with VNNI or AMX, or Arm.

    True also if /proc/cpuinfo does not say it.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return True
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return True
    return flags is None or not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(flags.group(1).split())


def compile_properties(precision: str) -> dict[str, object]:
    """Settings for OpenVINO: one batch runs at a time, on all processors."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": usable_cpus(),
        "ENABLE_CPU_PINNING": False,  # the event loop needs a processor, too
    }


def usable_cpus() -> int:
    """Number of processors that this process may use: CPU affinity, limited by the cgroup's quota if there is one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed


class OpenVinoEngine:
    """A model on the CPU, compiled from a file or from a graph.

    The weights of a file stay mapped, so several processes share the memory of all weights that are not packed for the
    kernels. If `quantised`, linear layers compute in int8 and all other operations in `precision`. On a processor
    without VNNI, these layers become convolutions; a graph that was passed in is changed in place.
    """

    def __init__(
        self, model: Path | openvino.Model, spec: ModelSpec, precision: str, *, quantised: bool = False
    ) -> None:
        core = openvino.Core()
        try:
            graph = core.read_model(model) if isinstance(model, Path) else model
            if quantised and not has_int8_dot_product():
                matmuls_to_convolutions(graph)
            keep_weights_narrow(graph, precision)
            compiled = core.compile_model(graph, "CPU", compile_properties(precision))
        except RuntimeError as fault:
            raise EngineUnavailableError(
                f"OpenVINO cannot load the engine {model}: {fault}; build the engine again"
            ) from fault
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
            token_width=widths.get(TOKENS, 0) - (spec.bge_m3 is not None),
            weighs_terms=spec.bge_m3 is not None,
        )
        if isinstance(model, Path):
            self._infer(Batch.pack([Tokens(np.zeros(1, np.int32), np.zeros(1, np.int32))]))  # packs the weights
            drop_mapped_pages(model.with_suffix(".bin"))

    def forward(self, batch: Batch) -> Array:
        """f32[B, D]; see `Engine.forward`."""
        self._infer(batch)
        return self._rows(len(batch))

    def forward_tokens(self, batch: Batch) -> tuple[Array, Array]:
        """f32[B, D] and f32[T, E]; see `Engine.forward_tokens`."""
        packed = self._infer(batch)
        tokens: Array = self._request.get_tensor(TOKENS).data[packed.token_indices]
        return self._rows(len(batch)), tokens

    def _infer(self, batch: Batch) -> PackedRows:
        packed = pack_rows(batch, pad_id=self._pad_id)
        self._padding_share = packed.padding_share
        self._request.infer(packed.graph_inputs(), share_inputs=True)
        return packed

    def _rows(self, num_sequences: int) -> Array:
        """f32[B, D], a copy because the next batch overwrites the tensor; D is 0 if the model has no such output."""
        if not self.info.row_width:
            return np.empty((num_sequences, 0), np.float32)
        return np.array(self._request.get_tensor(ROWS).data[:num_sequences])

    def padding_share(self) -> float:
        """Share (0 to 1) of the last batch's R * L tokens that were padding."""
        return self._padding_share

    def close(self) -> None:
        """Free the compiled model."""
        del self._request


def load(folder: Path, spec: ModelSpec, manifest: Manifest, *, dtype: str) -> OpenVinoEngine:
    """The engine in an engine folder, computing in `dtype`.

    Raises EngineUnavailableError if the processor does not support the dtype.
    """
    return OpenVinoEngine(folder / MODEL, spec, precision_for(dtype), quantised=manifest.precision == "int8")
