"""The engine on torch: packed batches through our model classes, on a GPU or, for tests, on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bei_core.checkpoint import Tensors, resolve
from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.torch.folder import DTYPES, read_facts
from bei_core.engines.torch.kernels.torch import TorchKernels
from bei_core.engines.torch.models.model import Model
from bei_core.engines.torch.models.sequences import Sequences
from bei_core.errors import EngineUnavailableError
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Tokens

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

# More tokens keep neither device busier, they only add latency (docs/gpu.md).
_BATCH_TOKENS = {"cuda": 16_384, "cpu": 1024}
# A model with rows as wide as a vocabulary (SPLADE) computes that many logits per token: smaller batches save memory.
_WIDE, _WIDE_BATCH_TOKENS = 8192, 2048

# What `Tensors` has as integers, because NumPy lacks the type.
_VIEWS = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}


class TorchEngine:
    """A model loaded from an engine folder."""

    def __init__(self, folder: Path, spec: ModelSpec, precision: str) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._staging = torch.empty(0, dtype=torch.int32)
        try:
            with self._device:
                self._model = Model(read_facts(folder), TorchKernels(getattr(torch, DTYPES[precision])))
            self._model.load(_Loaded(resolve(str(folder)).tensors(), self._device))
            self._model.to(self._device).eval()
            rows, tokens = self._run(Batch.pack([Tokens(np.zeros(1, np.int32), np.zeros(1, np.int32))]))
        except RuntimeError as fault:  # no memory, a driver that does not fit
            raise EngineUnavailableError(f"torch cannot load {folder} on {self._device}: {fault}") from fault
        row_width = 0 if rows is None else rows.shape[1]
        batch_tokens = _BATCH_TOKENS[self._device.type]
        self.info = EngineInfo(
            name="torch",
            device="gpu" if self._device.type == "cuda" else "cpu",
            precision=precision,
            row_width=row_width,
            max_seq_len=spec.max_seq_len,
            batch_tokens=min(batch_tokens, _WIDE_BATCH_TOKENS) if row_width > _WIDE else batch_tokens,
            token_width=0 if tokens is None else tokens.shape[1],
        )

    def forward(self, batch: Batch) -> Array:
        """f32[B, D]; see `Engine.forward`. Token vectors stay on the device."""
        return _to_host(self._run(batch, with_tokens=False)[0], len(batch))

    def forward_tokens(self, batch: Batch) -> tuple[Array, Array]:
        """f32[B, D] and f32[T, E]; see `Engine.forward_tokens`."""
        rows, tokens = self._run(batch)
        return _to_host(rows, len(batch)), _to_host(tokens, batch.num_tokens)

    def padding_share(self) -> float:
        """0: sequences are packed."""
        return 0.0

    def close(self) -> None:
        """Frees the device's memory."""
        del self._model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _run(self, batch: Batch, *, with_tokens: bool = True) -> tuple[Tensor | None, Tensor | None]:
        """(rows, token rows) on the device; None for what the model does not have."""
        sequences = self._upload(batch)
        hidden = self._model.transformer(sequences)
        head = self._model.head
        return head.rows(hidden, sequences), head.tokens(hidden, sequences) if with_tokens else None

    def _upload(self, batch: Batch) -> Sequences:
        """The batch on the device, by one copy from pinned memory."""
        size, lengths = batch.num_tokens, batch.lengths
        positions = np.arange(size, dtype=np.int32) - np.repeat(batch.cu_seqlens[:-1], lengths)
        pooled = (positions >= np.repeat(batch.skips, lengths)).astype(np.int32)
        parts = (batch.input_ids, batch.type_ids, positions, pooled, lengths)
        total = sum(map(len, parts))
        if total > len(self._staging):
            self._staging = torch.empty(2 * total, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        staged = self._staging[:total]  # free again, because every forward pass ends with a copy to the host
        np.concatenate(parts, out=staged.numpy())
        ids, types, positions_there, pooled_there, lengths_there = staged.to(self._device, non_blocking=True).split(
            [len(part) for part in parts]
        )
        return Sequences(ids, types, positions_there, pooled_there.bool(), lengths_there, batch.lengths)


class _Loaded(Mapping[str, Tensor]):
    """A checkpoint's tensors, each copied to the device when it is asked for."""

    def __init__(self, tensors: Tensors, device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def __getitem__(self, name: str) -> Tensor:
        value = torch.from_numpy(np.array(self._tensors.raw(name)))
        dtype = _VIEWS.get(self._tensors.dtype(name))
        return (value if dtype is None else value.view(dtype)).to(self._device)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _to_host(rows: Tensor | None, count: int) -> Array:
    """f32[count, D], the caller's own; D is 0 if the model has no such output."""
    if rows is None:
        return np.empty((count, 0), np.float32)
    result: Array = rows.float().cpu().numpy()
    return result


def load(folder: Path, spec: ModelSpec, manifest: Manifest, *, dtype: str) -> TorchEngine:
    """The engine in an engine folder, in the precision in which it was built; `dtype` has no effect.

    Raises EngineUnavailableError if it does not fit the device, CheckpointError for a tensor that does not fit.
    """
    engine = TorchEngine(folder, spec, manifest.precision)
    if engine.info.device == "cpu":
        log.warning("torch finds no GPU, so this model runs on the CPU, where engine: openvino is much faster")
    return engine
