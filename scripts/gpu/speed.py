"""Measures a card, a GPU engine without a server, `bei serve` and other servers over HTTP, and other libraries."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bei_core.bench import Options, run
from bei_core.bench.workload import texts
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened
from bei_core.engines.torch.folder import facts_of
from bei_core.models.layouts import BertSizes, DecoderSizes
from bei_core.models.spec import ModelSpec
from bei_core.models.tokenizer import open_model_tokenizer
from bei_core.tasks import EncodeOptions, Tokens
from scripts.gpu.report import Result

_START_S = 300.0
_WORKLOADS = {"512 tokens": "long", "mixed lengths": "mixed"}


def measure_card(folder: Path) -> Result:
    """Measures the peak of matmuls in bf16 and fp8 and the bandwidth of memory; writes the peaks to `card.json`."""
    has_gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if has_gpu else (256, "cpu")
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    peaks = {"bf16": 2 * size**3 / _seconds(lambda: a @ a)}
    if has_gpu and torch.cuda.get_device_capability() >= (8, 9):
        low, one = a.to(torch.float8_e4m3fn), torch.ones((), device=device)
        options: dict[str, Any] = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
        peaks["fp8"] = 2 * size**3 / _seconds(lambda: torch._scaled_mm(low, low.t(), **options))
    (folder / "card.json").write_text(json.dumps(peaks))
    block = torch.empty((1 << 30) if has_gpu else (1 << 20), dtype=torch.uint8, device=device)
    bandwidth = 2 * len(block) / _seconds(block.clone)
    figures = {f"{name} matmul, TFLOP/s": f"{peak / 1e12:.4g}" for name, peak in peaks.items()}
    return Result(section="The card", what="measured", figures={**figures, "memory, GB/s": f"{bandwidth / 1e9:.4g}"})


def _seconds(function: Callable[[], object], *, rounds: int = 20) -> float:
    """Returns the median time of a call in seconds, after 3 calls that do not count."""
    times = []
    for _ in range(rounds + 3):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times[3:]))


def flops_per_token(spec: ModelSpec, length: float) -> float:
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


def engine_alone(opened: Opened, what: str, folder: Path, *, rounds: int) -> Iterator[Result]:
    """Measures 1, 8 and 32 short texts at a time, then full batches of real texts; yields both rows."""
    encode = open_model_tokenizer(opened.tokenizer, opened.spec, 512).encode_now
    short, latencies = encode(texts("short", 32, 0), EncodeOptions()), {}
    for count in (1, 8, 32):
        batch = Batch.pack(short[:count])
        times = [_run(opened, [batch]) * 1000 for _ in range(10 * rounds)][rounds:]
        latencies[f"{count} short, p50 / p99 ms"] = f"{np.quantile(times, 0.5):.2f} / {np.quantile(times, 0.99):.2f}"
    yield Result(section="The engine alone: latency", what=what, figures=latencies)
    peaks, precision = json.loads((folder / "card.json").read_text()), opened.engine.info.precision
    figures = {}
    for name, kind in _WORKLOADS.items():
        items = encode(texts(kind, (40 if kind == "long" else 600) * rounds, 0), EncodeOptions())
        batches = full_batches(items, opened.engine.info.batch_tokens)[:rounds]
        _run(opened, batches)
        num_tokens = sum(batch.num_tokens for batch in batches)
        rate = num_tokens / float(np.median([_run(opened, batches) for _ in range(3)]))
        mean = sum(batch.num_tokens for batch in batches) / sum(map(len, batches))
        peak = peaks.get(precision, peaks["bf16"])
        figures[f"{name}, tokens/s"] = f"{rate:,.0f}"
        figures[f"{name}, of matmul peak"] = f"{rate * flops_per_token(opened.spec, mean) / peak:.1%}"
    yield Result(section="The engine alone: throughput", what=what, figures=figures)


def full_batches(items: Sequence[Tokens], budget: int) -> list[Batch]:
    """Returns the texts in order, in batches of at most `budget` tokens."""
    batches, current, total = [], list[Tokens](), 0
    for item in items:
        if current and total + len(item) > budget:
            batches.append(Batch.pack(current))
            current, total = [], 0
        current.append(item)
        total += len(item)
    return [*batches, Batch.pack(current)]


def _run(opened: Opened, batches: Sequence[Batch]) -> float:
    started = time.perf_counter()
    for batch in batches:
        opened.engine.forward(batch)
    return time.perf_counter() - started


def over_http(url: str, what: str, *, requests: int, clients: Sequence[int] = (64, 1024)) -> Iterator[Result]:
    """Measures a server with texts of about 500 and 5 tokens, one for each request; yields a row for each run."""
    for workload in ("long", "tiny"):
        for count in clients:
            options = Options(
                url=url, workload=workload, num_requests=requests, warmup=max(count, requests // 8), clients=count
            )
            report = run(options)
            latency = report.latency_ms
            yield Result(
                section="Over HTTP",
                what=f"{what}, {workload}, {count} clients",
                figures={
                    "requests/s": f"{report.requests_per_s:,.0f}",
                    "tokens/s": "" if report.tokens_per_s is None else f"{report.tokens_per_s:,.0f}",
                    "p50 / p99 ms": "" if latency is None else f"{latency.p50:.1f} / {latency.p99:.1f}",
                    "errors": str(sum(report.errors.values()) or ""),
                },
            )


@contextmanager
def server(folder: Path, paths: Sequence[str]) -> Iterator[str]:
    """Starts `bei serve` of an engine folder, yields its URL, and stops it at the end of the block.

    Raises RuntimeError if the server ends or does not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "bei_core.cli", "serve", "--model-id", str(folder)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([*command, "--port", str(port)], stdout=sys.stderr, env=environ)
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


def transformers_alone(model: Path, what: str, *, rounds: int) -> Result:
    """Measures transformers' class in f16 with SDPA, on batches of padded texts sorted by length."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"), pad_token="[PAD]")
    module = AutoModel.from_pretrained(model, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    figures = {}
    for name, kind in _WORKLOADS.items():
        given = sorted(texts(kind, 64 * rounds, 0), key=len)
        total = sum(len(ids) for ids in tokenizer(given, truncation=True, max_length=512)["input_ids"])

        def compute(given: list[str] = given) -> None:
            for start in range(0, len(given), 32):
                options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 512}
                batch = tokenizer(given[start : start + 32], return_tensors="pt", **options).to(device)
                module(batch["input_ids"], attention_mask=batch["attention_mask"])

        with torch.inference_mode():
            figures[f"{name}, tokens/s"] = f"{total / _seconds(compute, rounds=3):,.0f}"
    return Result(section="Other libraries, in one process", what=f"transformers, {what}", figures=figures)


def sentence_transformers_alone(model: Path, what: str, *, rounds: int) -> Result:
    """Measures `SentenceTransformer.encode` in f16."""
    from sentence_transformers import SentenceTransformer

    module = SentenceTransformer(str(model))
    module = module.half() if torch.cuda.is_available() else module
    figures = {}
    for name, kind in _WORKLOADS.items():
        given = texts(kind, 64 * rounds, 0)
        total = sum(len(ids) for ids in module.tokenizer(given, truncation=True, max_length=512)["input_ids"])
        seconds = _seconds(lambda given=given: module.encode(given, batch_size=32), rounds=3)  # type: ignore[misc]
        figures[f"{name}, tokens/s"] = f"{total / seconds:,.0f}"
    return Result(section="Other libraries, in one process", what=f"sentence-transformers, {what}", figures=figures)
