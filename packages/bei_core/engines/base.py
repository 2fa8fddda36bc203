"""The engine contract. An engine knows arrays and nothing of requests: no HTTP, no ids, no per-request option.

`engines/NAME/build.py` has `facts(settings)` and `plan(checkpoint, spec, settings) -> Plan`;
`engines/NAME/engine.py` has `load(folder, spec, manifest, *, dtype) -> Engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bei_core.engines.batch import Batch
from bei_core.engines.quality import Quality


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the runner, the metrics and `/info` may know of an engine."""

    name: str  # "openvino", "tensorrt_llm"
    device: str  # "cpu", "gpu"
    precision: str  # what the matrix products compute in: "f32", "bf16", "int8", "fp8"
    row_width: int  # D; 0 of a model that gives rows of tokens alone
    max_seq_len: int  # the longest sequence `forward` takes, in tokens
    batch_tokens: int  # beyond about this many tokens a batch gains no throughput, only latency
    token_width: int = 0  # E; 0 of a model that gives no rows of tokens

    @property
    def compute_type(self) -> str:
        """The `x-compute-type` header, such as `cpu+bf16`."""
        return f"{self.device}+{self.precision}"


class Engine(Protocol):
    """A model that is ready to run. One thread at a time calls it."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant for its life."""
        ...

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """f32[B, D], row `i` for sequence `i`: pooled, through the head, not normalised. The array is the caller's.

        A sequence gets the row it would get alone. Raises whatever the runtime raises; the engine stays usable.
        """
        ...

    def forward_tokens(self, batch: Batch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """f32[B, D] as `forward`, and f32[T, E], row `i` for token `i`; of a model whose `token_width` is not 0."""
        ...

    def padding_share(self) -> float:
        """Share (0 to 1) of the last `forward`'s tokens that were padding."""
        ...

    def close(self) -> None:
        """Frees the runtime; nothing is called after."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """An engine that could be built."""

    engine: str  # "openvino", "tensorrt_llm"
    precision: str  # of its weights: "f32", "bf16", "int8", "fp8"
    artifact: Mapping[str, object]  # all that decides its numbers, besides the checkpoint and the spec
    fill: Callable[[Path], Quality | None]  # writes its files into a folder; the quality of a quantised one
    built_with: Mapping[str, str] = field(default_factory=dict)  # versions, for people
