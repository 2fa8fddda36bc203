"""The engine on torch: runs the model classes of `models/` on packed batches, on GPUs, or on the CPU for tests."""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bei_core.engines.base import EngineInfo
from bei_core.engines.batch import Batch
from bei_core.engines.manifest import Manifest
from bei_core.engines.torch.batches import Array, DeviceLostError, PackedEngine, Parts, free_cached_memory
from bei_core.engines.torch.graphs import Graphs
from bei_core.engines.torch.loading import TRIAL, check_gpu, compile_layers, load_folder, reason_without_gpu
from bei_core.engines.torch.models.model import Model
from bei_core.engines.torch.parallel import Workers
from bei_core.errors import ConfigError, EngineUnavailableError
from bei_core.models.spec import ModelSpec

log = logging.getLogger(__name__)

# Tokens of a batch by type of device. More tokens would only add latency, without more throughput (docs/gpu.md).
_BATCH_TOKENS = {"cuda": 16_384, "cpu": 1024}
# SPLADE's rows have the width of the vocabulary, and it computes as many logits per token. To save memory, a model with
# rows wider than _WIDE has smaller batches.
_WIDE, _WIDE_BATCH_TOKENS = 8192, 2048


class TorchEngine(PackedEngine):
    """A model on one device. With `workers`, it is one share of a divided model, and they compute the other shares."""

    def __init__(self, model: Model, spec: ModelSpec, precision: str, workers: Workers | None = None) -> None:
        self._model, self._device, self._workers = model, model.device, workers
        self._launching = threading.Lock()
        self._guard = nullcontext if workers is None else workers.errors_are_fatal
        self._parts = Parts(sys.maxsize, sys.maxsize, self._device)
        # Makes the GPU of this engine the current one of torch, so that kernels, streams and graphs are made for it.
        self._current = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        self._graphs: Graphs | None = None
        try:
            rows, tokens = self._run(TRIAL)
        except (RuntimeError, DeviceLostError) as error:  # too little memory, or a kernel that the GPU does not support
            raise EngineUnavailableError(f"torch cannot run {spec.architecture} on {self._device}: {error}") from error
        if workers is None and rows.shape[1] and model.is_graphable():
            self._graphs = Graphs(model, spec.max_seq_len)
        batch_tokens = _BATCH_TOKENS[self._device.type]
        self.info = EngineInfo(
            name="torch",
            device="gpu" if self._device.type == "cuda" else "cpu",
            precision=precision,
            row_width=rows.shape[1],
            max_seq_len=spec.max_seq_len,
            batch_tokens=min(batch_tokens, _WIDE_BATCH_TOKENS) if rows.shape[1] > _WIDE else batch_tokens,
            token_width=tokens.shape[1] - (spec.bge_m3 is not None),
            weighs_terms=spec.bge_m3 is not None,
            num_callers=2,
        )

    def compute(self, batch: Batch, *, with_tokens: bool) -> list[tuple[Array, Array]]:
        """See `PackedEngine.compute`. Token vectors are copied to the host only if they are asked for."""
        return self._parts.run(partial(self._run, with_tokens=with_tokens), batch)

    def close(self) -> None:
        """Frees the memory of the device and ends the workers."""
        if self._workers is not None:
            self._workers.close()
        del self._model, self._graphs
        if self._device.type == "cuda":
            free_cached_memory()

    @torch.inference_mode()
    def _run(self, batch: Batch, *, with_tokens: bool = True) -> tuple[Array, Array]:
        """Returns f32[B, D] and f32[T, E].

        D or E is 0 if the model has no such output; E is also 0 without `with_tokens`. While the caller waits for its
        results, another caller launches the next batch. It runs after this one, because both use the same stream.
        """
        with self._guard():
            with self._launching, self._current:
                rows, tokens = self._launch(batch, with_tokens)
                results = copy_to_host(rows, len(batch)), copy_to_host(tokens, batch.num_tokens)
                end = record_event(self._device)
            if end is not None:
                end.synchronize()
        return results[0].numpy(), results[1].numpy()

    def _launch(self, batch: Batch, with_tokens: bool) -> tuple[Tensor | None, Tensor | None]:
        """Returns what `Model.compute` does. A GPU has not computed it yet, and the next launch may overwrite it."""
        rows = None if self._graphs is None or with_tokens else self._graphs.run(batch)
        if rows is not None:
            return rows, None
        if self._workers is not None:
            self._workers.send(batch, with_tokens)
        return self._model.compute(batch, with_tokens)


class Replicas(PackedEngine):
    """Copies of one model on several devices. Each computes a part of every batch, all at the same time."""

    def __init__(self, engines: Sequence[TorchEngine]) -> None:
        self._engines = engines
        self._pool = ThreadPoolExecutor(len(engines) * engines[0].info.num_callers, "bei-gpu")
        one = engines[0].info
        count = len(engines)
        self.info = dataclasses.replace(one, batch_tokens=one.batch_tokens * count, num_replicas=count)

    def compute(self, batch: Batch, *, with_tokens: bool) -> list[tuple[Array, Array]]:
        """See `PackedEngine.compute`."""
        parts = zip(self._engines, batch.even_parts(len(self._engines)), strict=False)  # of few texts, fewer parts
        running = [self._pool.submit(engine.compute, part, with_tokens=with_tokens) for engine, part in parts]
        return [rows for each in running for rows in each.result()]

    def close(self) -> None:
        """Frees the memory of all devices and ends the threads."""
        self._pool.shutdown()
        for engine in self._engines:
            engine.close()


def copy_to_host(rows: Tensor | None, count: int) -> Tensor:
    """Returns f32[count, D] on the host, in pinned memory that a GPU has not filled yet. D is 0 if `rows` is None."""
    if rows is None:
        return torch.empty(count, 0)
    return rows.to("cpu", torch.float32, non_blocking=True, copy=True)


def record_event(device: torch.device) -> Any:
    """Returns an event that occurs when the device has done what was launched on it before; None for a CPU."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def load(
    folder: Path,
    spec: ModelSpec,
    manifest: Manifest,
    *,
    dtype: str,
    devices: Sequence[int] = (),
    tensor_parallel: int = 1,
    compiled: bool = True,
) -> TorchEngine | Replicas:
    """Loads the engine of an engine folder. The manifest gives its precision; `dtype` has no effect.

    It runs on the first GPU, as a copy on each of `devices`, or divided among `tensor_parallel` GPUs. Raises
    EngineUnavailableError if it cannot run on the devices, UnsupportedModelError for a model that cannot be divided,
    CheckpointError for a tensor that is missing or has the wrong shape, and ConfigError as `_choose`.
    """
    chosen = _choose(devices, tensor_parallel)
    for device in chosen:
        check_gpu(manifest.precision, device)
    if chosen[0].type == "cpu":
        log.warning(
            "torch finds no GPU (%s), so this model runs on the CPU, where engine: openvino is much faster",
            reason_without_gpu(),
        )
    if tensor_parallel > 1:
        return _divided(folder, spec, manifest.precision, chosen, may_compile=compiled)
    models = [load_folder(folder, manifest.precision, device, may_compile=compiled) for device in chosen]
    for model in models if compiled else ():
        compile_layers(model, folder)
    engines = [TorchEngine(model, spec, manifest.precision) for model in models]
    return engines[0] if len(engines) == 1 else Replicas(engines)


def _divided(
    folder: Path, spec: ModelSpec, precision: str, devices: list[torch.device], *, may_compile: bool
) -> TorchEngine:
    load_share = partial(load_folder, folder, precision, may_compile=may_compile)
    workers = Workers(load_share, devices)
    try:
        model = load_share(devices[0], workers.rank)
        workers.await_loaded()
        return TorchEngine(model, spec, precision, workers)
    except BaseException:
        workers.close()
        raise


def _choose(devices: Sequence[int], tensor_parallel: int) -> list[torch.device]:
    """Returns the devices to run on; without a GPU they are the CPU.

    Raises ConfigError if `tensor_parallel` is more than 1 and not the number of `devices`, and EngineUnavailableError
    for a GPU that torch does not find.
    """
    if devices and tensor_parallel not in {1, len(devices)}:
        raise ConfigError(
            f"tensor_parallel_size is {tensor_parallel}, but the number of devices is {len(devices)}; give as many, or "
            "none to use the first GPUs"
        )
    numbers = list(devices) or list(range(tensor_parallel))
    if not torch.cuda.is_available():
        if devices:
            raise EngineUnavailableError(f"devices are given, but torch finds no GPU: {reason_without_gpu()}")
        return [torch.device("cpu")] * len(numbers)
    if max(numbers) >= torch.cuda.device_count():
        raise EngineUnavailableError(
            f"GPU {max(numbers)} is asked for; torch finds {torch.cuda.device_count()}, from 0"
        )
    return [torch.device("cuda", number) for number in numbers]
