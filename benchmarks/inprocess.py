"""Throughput without HTTP: of the engine alone on full batches, and with tokenizer, queue and event loop.

Prints JSON. `serve.py` runs it in a process of its own, like a server:

    inprocess.py MODEL DTYPE WORKLOAD NUM_TEXTS
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import openvino
import uvloop
from openvino import opset15 as op

from bei_core.bench.workload import texts
from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.open import open_engine
from bei_core.engines.openvino.changes import change_for
from bei_core.engines.openvino.engine import compile_properties
from bei_core.serving.service import Service
from bei_core.tasks import Embed, EncodeOptions, Tokens

GEMM_SIZE = 2048  # rows and columns of the matrices of `gemm_peak`

_REPEATS = 5
_CLIENTS = 64


def gemm_peak(precision: str) -> float:
    """GFLOP/s (int8: GOP/s) of one large matmul in OpenVINO: an upper limit for the model's layers.

    In int8, weights and activations have 8 bits, in the form in which our engine runs its linear layers.
    """
    size = GEMM_SIZE
    x = op.parameter([1, size, size], np.float32, name="x")
    if precision == "int8":
        low, high = (op.constant(np.array(bound, np.float32)) for bound in (-1.28, 1.27))
        left = op.fake_quantize(x, low, high, low, high, 256)
        narrow = op.convert(op.constant(np.full((size, size), 3, np.int8)), np.float32)
        right = op.multiply(narrow, op.constant(np.full((size, 1), 0.01, np.float32)))
    else:
        left, right = x, op.constant(np.ones((size, size), np.float32))
    model = openvino.Model([op.result(op.matmul(left, right, False, True))], [x], "gemm")
    others = "f32" if precision == "int8" else precision
    change_for(model, others, quantised=precision == "int8")
    request = openvino.Core().compile_model(model, "CPU", compile_properties(others)).create_infer_request()
    return 2 * size**3 / fastest_call(request, np.ones((1, size, size), np.float32)) / 1e9


def fastest_call(request: openvino.InferRequest, array: npt.NDArray[np.float32]) -> float:
    """Seconds of the fastest of 15 calls with this input, after one that is not timed."""
    request.infer([array])
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        request.infer([array], share_inputs=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def full_batches(tokens: Sequence[Tokens], budget: int) -> Iterator[list[Tokens]]:
    """Batches in order of arrival, each as full as the budget allows."""
    batch: list[Tokens] = []
    for item in tokens:
        if batch and sum(map(len, batch)) + len(item) > budget:
            yield batch
            batch = []
        batch.append(item)
    yield batch


def engine_alone(engine: Engine, batches: Sequence[Batch]) -> float:
    """Texts per second of `forward` alone."""
    started = time.perf_counter()
    for batch in batches:
        engine.forward(batch)
    return sum(map(len, batches)) / (time.perf_counter() - started)


async def through_service(service: Service, given: Sequence[str]) -> float:
    """Texts per second of 64 callers in the same process, with one text per call."""
    waiting = iter(given)

    async def caller() -> None:
        for text in waiting:
            await service.run(Embed([text], service.model.default_options))

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(_CLIENTS)))
    return len(given) / (time.perf_counter() - started)


def measure(model: str, dtype: str, workload: str, count: int) -> dict[str, float]:
    """Both throughputs (medians of interleaved repeats) and the GEMM peak."""
    settings = Settings(model_id=model, dtype=dtype)  # type: ignore[arg-type]
    service = Service.open(settings)
    engine = open_engine(settings).engine
    given = texts(workload, count, 0)
    tokens = service.tokenizer.encode_now(given, EncodeOptions())
    batches = [Batch.pack(items) for items in full_batches(tokens, engine.info.batch_tokens)]
    alone, served = [], []
    for _ in range(_REPEATS + 1):
        alone.append(engine_alone(engine, batches))
        served.append(uvloop.run(through_service(service, given)))
    service.close()
    return {
        "engine_texts_per_s": statistics.median(alone[1:]),
        "in_process_texts_per_s": statistics.median(served[1:]),
        "mean_tokens": sum(map(len, tokens)) / len(tokens),
        "gemm_peak_gflops": gemm_peak(engine.info.precision),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
