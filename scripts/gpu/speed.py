"""Measures the speed of a GPU engine: a short query, full batches, and `bei serve` against other installed servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bei_core.bench import Options, Report, run
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.torch.folder import facts_of
from bei_core.models.layouts import BertSizes, DecoderSizes
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Tokens

# Dense peaks in TFLOP/s, (bf16, fp8), by a part of the GPU's name (source: NVIDIA's data sheets).
PEAKS: Mapping[str, tuple[float, float]] = {
    "B200": (2250, 4500),
    "H200": (989, 1979),
    "H100 PCIe": (756, 1513),
    "H100": (989, 1979),
    "L40S": (362, 733),
    "L4": (121, 242),
    "A100": (312, 312),
    "A10G": (70, 70),
}

# Commands of other servers with an OpenAI route; model and port are filled in.
PEERS: Mapping[str, tuple[str, ...]] = {
    "trtllm-serve": ("trtllm-serve", "embeddings", "{model}", "--port", "{port}"),
    "vLLM": ("vllm", "serve", "{model}", "--runner", "pooling", "--served-model-name", "bench", "--port", "{port}"),
    "text-embeddings-inference": ("text-embeddings-router", "--model-id", "{model}", "--port", "{port}"),
}
WORKLOADS = ("long", "tiny")  # about 500 and 5 tokens per request
_START_S = 900.0


@dataclass(frozen=True)
class Alone:
    """Speed of the engine without a server."""

    query_p50_ms: float
    query_p99_ms: float
    tokens_per_s: float  # of full batches
    share: float | None  # of the GPU's peak; None if the GPU is not in the table


@dataclass(frozen=True)
class Served:
    """The result of one server on one workload. `report` is None if the server is not installed or did not start."""

    server: str
    workload: str
    report: Report | None
    note: str = ""


def flops_per_token(spec: ModelSpec, length: int) -> float:
    """Returns the FLOPs of all matmuls per token, in sequences of `length` tokens."""
    facts = facts_of(spec)
    family = facts.of_family
    if family.page == "bert":
        bert = BertSizes.of(family.layout[0], spec.config)
        return (
            2.0
            * bert.num_layers
            * (4 * bert.hidden**2 + 2 * bert.hidden * bert.intermediate_size + 2 * length * bert.hidden)
        )
    sizes = DecoderSizes.of(family.layout, spec.config)
    width, kv_width = sizes.num_heads * sizes.head_size, sizes.num_kv_heads * sizes.head_size
    num_keys = length if facts.mask == "full" else length / 2  # that a query attends to, on average
    linear = sizes.hidden * (2 * width + 2 * kv_width + 3 * sizes.intermediate_size)
    return 2.0 * sizes.num_layers * (linear + 2 * num_keys * width)


def peak_of(gpu: str, precision: str) -> float | None:
    """Returns the peak FLOP/s of a GPU by its name; None if the GPU is not in `PEAKS`."""
    found = next((peaks for name, peaks in PEAKS.items() if name in gpu), None)
    return None if found is None else found[precision == "fp8"] * 1e12


def alone(engine: Engine, spec: ModelSpec, gpu: str, *, rounds: int) -> Alone:
    """Measures one sequence of 8 tokens at a time, then full batches of sequences of up to 512 tokens."""
    query = Batch.pack([_blank(min(8, spec.max_seq_len))])
    times = [_seconds(engine, query) for _ in range(10 * rounds)][rounds:]
    length = min(512, spec.max_seq_len)
    batch = Batch.pack([_blank(length)] * max(1, engine.info.batch_tokens // length))
    _seconds(engine, batch)
    rate = batch.num_tokens * rounds / sum(_seconds(engine, batch) for _ in range(rounds))
    peak = peak_of(gpu, engine.info.precision)
    share = None if peak is None else rate * flops_per_token(spec, length) / peak
    p50, p99 = (float(1000 * np.quantile(times, q)) for q in (0.5, 0.99))
    return Alone(p50, p99, rate, share)


def _blank(length: int) -> Tokens:
    return Tokens(np.zeros(length, np.int32), np.zeros(length, np.int32))


def _seconds(engine: Engine, batch: Batch) -> float:
    started = time.perf_counter()
    engine.forward(batch)
    return time.perf_counter() - started


def served(
    model: str, ours: Path, requests: int, environ: Mapping[str, str], engine: str = "tensorrt_llm"
) -> Iterator[Served]:
    """Measures each server on each workload, one server at a time; yields each result."""
    bei = (sys.executable, "-W", "ignore", "-m", "bei_core.cli", "serve", "--engine", engine)
    commands = {"BEI": (*bei, "--model-id", str(ours), "--port", "{port}"), **PEERS}
    for name, command in commands.items():
        if shutil.which(command[0]) is None:
            yield from (Served(name, workload, None, "not installed") for workload in WORKLOADS)
            continue
        try:
            with server(command, model, environ) as url:
                for workload in WORKLOADS:
                    yield Served(name, workload, _load(url, name, workload, requests))
        except (RuntimeError, OSError) as fault:
            yield from (Served(name, workload, None, str(fault)) for workload in WORKLOADS)


def _load(url: str, name: str, workload: str, requests: int) -> Report:
    warmup = requests // 8
    options = Options(url=url, label=name, workload=workload, num_requests=requests, warmup=warmup)  # type: ignore[arg-type]
    return run(options)


@contextmanager
def server(command: tuple[str, ...], model: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Starts a server, yields its URL, and stops it at the end of the block.

    Raises RuntimeError if the server ends or does not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    filled = [part.format(model=model, port=port) for part in command]
    process = subprocess.Popen(
        filled, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environ}
    )
    try:
        _first_answer(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _first_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    body = json.dumps({"input": "hello", "model": "bench"}).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", body, {"content-type": "application/json"})
    until = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(request, timeout=60).read()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"the server did not answer (exit status {process.poll()}; None: still running)")
