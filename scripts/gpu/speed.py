"""How fast it is: one short query, full batches, and servers over HTTP beside those of others, where they are here."""

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
from bei_core.engines.tensorrt_llm.artifact import facts_of
from bei_core.models.families import BERTS, DECODERS, BertSizes, DecoderSizes
from bei_core.models.spec import ModelSpec
from bei_core.tasks import Tokens

# Dense peaks of cards in TFLOP/s, (bf16, fp8), by a part of their names: NVIDIA's data sheets.
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

# Servers of others with an OpenAI route: the command after the model and the port are filled in.
PEERS: Mapping[str, tuple[str, ...]] = {
    "trtllm-serve": ("trtllm-serve", "embeddings", "{model}", "--port", "{port}"),
    "vLLM": ("vllm", "serve", "{model}", "--runner", "pooling", "--served-model-name", "bench", "--port", "{port}"),
    "text-embeddings-inference": ("text-embeddings-router", "--model-id", "{model}", "--port", "{port}"),
}
WORKLOADS = ("long", "tiny")  # about 500 and 5 tokens a request
_START_S = 900.0


@dataclass(frozen=True)
class Alone:
    """What the engine does without a server around it."""

    query_p50_ms: float
    query_p99_ms: float
    tokens_per_s: float  # of full batches
    share: float | None  # of the card's peak; None where the card is not in the table


@dataclass(frozen=True)
class Served:
    """What a server did with one workload; `report` is None where it is not here or did not start."""

    server: str
    workload: str
    report: Report | None
    note: str = ""


def flops_per_token(spec: ModelSpec, length: int) -> float:
    """Of the matrix products for a token of a text of that length."""
    facts = facts_of(spec)
    if facts.is_bert:
        bert = BertSizes.of(BERTS[facts.family], spec.config)
        return 2.0 * bert.num_layers * (4 * bert.hidden**2 + 2 * bert.hidden * bert.inner + 2 * length * bert.hidden)
    sizes = DecoderSizes.of(DECODERS[facts.family], spec.config)
    width, keys = sizes.num_queries * sizes.head_size, sizes.num_keys * sizes.head_size
    seen = length if facts.mask == "full" else length / 2
    products = sizes.hidden * (2 * width + 2 * keys + 3 * sizes.inner)
    return 2.0 * sizes.num_layers * (products + 2 * seen * width)


def peak_of(card: str, precision: str) -> float | None:
    """FLOP/s of a card by its name; None of one that is not in the table."""
    found = next((peaks for name, peaks in PEAKS.items() if name in card), None)
    return None if found is None else found[precision == "fp8"] * 1e12


def alone(engine: Engine, spec: ModelSpec, card: str, *, rounds: int) -> Alone:
    """One text of 8 tokens at a time; then batches as full as the engine takes, of texts of up to 512 tokens."""
    query = Batch.pack([_blank(min(8, spec.max_seq_len))])
    times = [_seconds(engine, query) for _ in range(10 * rounds)][rounds:]
    length = min(512, spec.max_seq_len)
    batch = Batch.pack([_blank(length)] * max(1, engine.info.batch_tokens // length))
    _seconds(engine, batch)
    rate = batch.num_tokens * rounds / sum(_seconds(engine, batch) for _ in range(rounds))
    peak = peak_of(card, engine.info.precision)
    share = None if peak is None else rate * flops_per_token(spec, length) / peak
    p50, p99 = (float(1000 * np.quantile(times, q)) for q in (0.5, 0.99))
    return Alone(p50, p99, rate, share)


def _blank(length: int) -> Tokens:
    return Tokens(np.zeros(length, np.int32), np.zeros(length, np.int32))


def _seconds(engine: Engine, batch: Batch) -> float:
    started = time.perf_counter()
    engine.forward(batch)
    return time.perf_counter() - started


def served(model: str, ours: Path, requests: int, environ: Mapping[str, str]) -> Iterator[Served]:
    """Each server on each workload, one server at a time."""
    bei = (sys.executable, "-W", "ignore", "-m", "bei_core.cli", "serve", "--engine", "tensorrt_llm")
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
    options = Options(url=url, label=name, workload=workload, clients=64, num_requests=requests, warmup=requests // 8)
    return run(options)


@contextmanager
def server(command: tuple[str, ...], model: str, environ: Mapping[str, str]) -> Iterator[str]:
    """URL of a server that ends with the block. Raises RuntimeError where it does not answer."""
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
    raise RuntimeError(f"did not answer; it ended with {process.poll()}")
