"""The engine contract. An engine knows arrays and nothing about requests: no HTTP, no ids, no per-request option.

`engines/NAME/build.py` has `facts(settings)`, `check(spec, settings)` and `plan(checkpoint, spec, settings) -> Plan`;
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
    """What the runner, the metrics and `/info` may know about an engine."""

    name: str  # "openvino", "torch", "tensorrt_llm"
    device: str  # "cpu", "gpu"
    precision: str  # of the matrix multiplications: "f32", "bf16", "f16", "int8", "fp8", or as in `Plan`
    row_width: int  # D; 0 for a model that gives rows of tokens only
    max_seq_len: int  # the longest sequence `forward` takes, in tokens
    batch_tokens: int  # of a full batch: a larger one takes longer, and gives little more throughput or none
    token_width: int = 0  # E; 0 for a model that gives no rows of tokens
    shares_prefixes: bool = False  # whether first tokens that sequences of a batch share are computed once
    weighs_terms: bool = False  # whether a token's row has one more number after those: its weight as a term (bge-m3)
    num_replicas: int = 1  # copies of the model, which compute a batch together: `max_batch_tokens` is that of each
    num_callers: int = 1  # threads that may call it at a time
    most_batch_tokens: int = 0  # of a batch under a long line or of a job, for more throughput; 0: `batch_tokens`

    @property
    def compute_type(self) -> str:
        """The `x-compute-type` header, such as `cpu+bf16`."""
        return f"{self.device}+{self.precision}"


class Engine(Protocol):
    """A model that is ready to run. At most `info.num_callers` threads call it at a time."""

    @property
    def info(self) -> EngineInfo:
        """A description of the engine, which never changes."""
        ...

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """f32[B, D], row `i` for sequence `i`: after pooling and heads, not normalised. The caller owns the array.

        A row does not depend on the other sequences of the batch. Raises what the runtime raises; the engine stays
        usable.
        """
        ...

    def forward_tokens(self, batch: Batch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """f32[B, D] as `forward`, and f32[T, E], row `i` for token `i`; only if `token_width` is not 0.

        With `weighs_terms` they are f32[T, E + 1].
        """
        ...

    def padding_share(self) -> float:
        """Share (0 to 1) of padding in the tokens and padding of the last batch of this thread."""
        ...

    def num_shared_tokens(self) -> int:
        """Number of tokens of the last batch of this thread that were not computed, because sequences share them."""
        ...

    def close(self) -> None:
        """Free the runtime. No method is called afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a build: what the engine will be, and the function that builds it."""

    engine: str  # "openvino", "torch", "tensorrt_llm"
    precision: str  # of its weights: "f32", "bf16", "f16", "int8", "int8_weight_only", "int4_weight_only", "fp8"
    artifact: Mapping[str, object]  # everything that decides its output, besides the checkpoint and the spec
    fill: Callable[[Path], Quality | None]  # writes its files into a folder; returns the quality if it is quantised
    built_with: Mapping[str, str] = field(default_factory=dict)  # versions of packages, only for information
