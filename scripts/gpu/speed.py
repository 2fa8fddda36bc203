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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bei_core.bench import Options, run
from bei_core.bench.workload import texts
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened
from bei_core.engines.torch.folder import facts_of
from bei_core.models.spec import ModelSpec
from bei_core.models.tokenizer import open_model_tokenizer
from bei_core.tasks import EncodeOptions, Tokens
from scripts.gpu.report import Result

Features = Mapping[str, Any]  # token ids, a mask and more, of a padded batch

_START_S = 300.0
_WORKLOADS = {"512 tokens": ("long", 40), "mixed lengths": ("mixed", 600)}  # kind of texts, and their number per round
_MAX_TOKENS = 16_384  # in a padded batch of the other libraries, as in a batch of the engines


class Card(msgspec.Struct, frozen=True):
    """What the card reaches."""

    flops: dict[str, float]  # FLOP/s of matmuls, by precision
    bandwidth: float  # of memory, bytes/s


def measure_card(folder: Path) -> Result:
    """Measures the peak of matmuls in bf16 and fp8 and the bandwidth of memory; writes them to `card.json`."""
    has_gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if has_gpu else (256, "cpu")
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    peaks = {"bf16": 2 * size**3 / _seconds(lambda: a @ a)}
    if has_gpu and torch.cuda.get_device_capability() >= (8, 9):
        low, one = a.to(torch.float8_e4m3fn), torch.ones((), device=device)
        options: dict[str, Any] = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
        peaks["fp8"] = 2 * size**3 / _seconds(lambda: torch._scaled_mm(low, low.t(), **options))
    block = torch.empty((1 << 30) if has_gpu else (1 << 20), dtype=torch.uint8, device=device)
    card = Card(peaks, 2 * len(block) / _seconds(block.clone))
    (folder / "card.json").write_bytes(msgspec.json.encode(card))
    figures = {f"{name} matmul, TFLOP/s": f"{peak / 1e12:.4g}" for name, peak in peaks.items()}
    return Result(
        section="The card", what="measured", figures={**figures, "memory, GB/s": f"{card.bandwidth / 1e9:.4g}"}
    )


def read_card(folder: Path) -> Card | None:
    """Returns what `measure_card` measured; None if it failed or did not run."""
    file = folder / "card.json"
    return msgspec.json.decode(file.read_bytes(), type=Card) if file.is_file() else None


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


def num_weights(spec: ModelSpec) -> float:
    """Returns the number of weights of all linear layers in the transformer."""
    sizes = facts_of(spec).sizes
    attention = sizes.heads.width + sum(sizes.heads.widths)
    mlp = (3 if sizes.is_gated else 2) * sizes.intermediate_size
    return float(sizes.num_layers * sizes.hidden * (attention + mlp))


def attention_flops(spec: ModelSpec, length: float) -> float:
    """Returns the FLOPs of attention per token, in sequences of `length` tokens."""
    facts = facts_of(spec)
    num_keys = length if facts.mask == "full" else length / 2  # that a query attends to, on average
    return 4.0 * facts.sizes.num_layers * num_keys * facts.sizes.heads.width


def roofline(spec: ModelSpec, lengths: Sequence[int], precision: str, card: Card) -> float:
    """Returns the seconds that a batch of sequences takes on the card at least, by its measured peaks.

    It is the longer of two times: that of the matmuls (attention in bf16, the linear layers in `precision`), and that
    of reading the weights of the linear layers once.
    """
    weights, peak = num_weights(spec), card.flops.get(precision, card.flops["bf16"])
    attention = sum(length * attention_flops(spec, length) for length in lengths)
    compute = 2 * weights * sum(lengths) / peak + attention / card.flops["bf16"]
    return max(compute, weights * (1 if precision == "fp8" else 2) / card.bandwidth)


def engine_alone(opened: Opened, what: str, folder: Path, *, rounds: int) -> Iterator[Result]:
    """Measures 1, 8 and 32 short texts at a time, then full batches of real texts; yields both rows.

    Each with its share of the card's roofline: the time of `roofline` divided by the measured time.
    """
    encode = open_model_tokenizer(opened.tokenizer, opened.spec, 512).encode_now
    card, precision = read_card(folder), opened.engine.info.precision

    def share(batches: Sequence[Batch], seconds: float) -> str:
        if card is None:
            return ""
        least = sum(roofline(opened.spec, batch.lengths.tolist(), precision, card) for batch in batches)
        return f"{least / seconds:.1%}"

    short, latencies = encode(texts("short", 32, 0), EncodeOptions()), {}
    for count in (1, 8, 32):
        batch = Batch.pack(short[:count])
        times = [_run(opened, [batch]) for _ in range(10 * rounds)][rounds:]
        p50, p99 = np.quantile(times, (0.5, 0.99))
        latencies[f"{count} short, p50 / p99 ms"] = f"{p50 * 1000:.2f} / {p99 * 1000:.2f}"
        latencies[f"{count} short, of roofline"] = share([batch], p50)
    yield Result(section="The engine alone: latency", what=what, figures=latencies)
    figures = {}
    for name, (kind, number) in _WORKLOADS.items():
        items = encode(texts(kind, number * rounds, 0), EncodeOptions())
        batches = full_batches(items, opened.engine.info.batch_tokens)[:rounds]
        _run(opened, batches)
        seconds = float(np.median([_run(opened, batches) for _ in range(3)]))
        figures[f"{name}, tokens/s"] = f"{sum(batch.num_tokens for batch in batches) / seconds:,.0f}"
        figures[f"{name}, of roofline"] = share(batches, seconds)
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
    """Measures transformers' class with SDPA and mean pooling, from token ids to vectors on the host."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"), pad_token="[PAD]")
    module = AutoModel.from_pretrained(model, dtype=_dtype(), attn_implementation="sdpa").to(_device()).eval()

    def embed(features: Features) -> torch.Tensor:
        mask = features["attention_mask"]
        hidden = module(features["input_ids"], attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def tokenize(given: list[str]) -> Features:
        return dict(tokenizer(given, padding=True, truncation=True, max_length=512, return_tensors="pt"))

    return _library(f"transformers with sdpa, {what}", tokenize, embed, rounds=rounds)


def sentence_transformers_alone(model: Path, what: str, *, rounds: int) -> Result:
    """Measures the modules of a SentenceTransformer with SDPA, from token ids to vectors on the host."""
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": _dtype()}
    module = SentenceTransformer(str(model), device=_device(), model_kwargs=options)
    tokenize = module.preprocess if hasattr(module, "preprocess") else module.tokenize  # before version 6
    return _library(
        f"sentence-transformers with sdpa, {what}",
        tokenize,
        lambda features: module(dict(features))["sentence_embedding"],
        rounds=rounds,
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _library(
    what: str,
    tokenize: Callable[[list[str]], Features],
    embed: Callable[[Features], torch.Tensor],
    *,
    rounds: int,
) -> Result:
    """Measures `embed` on the texts of the engines, sorted by length, in padded batches.

    As with the engines, tokenizing is not measured, and copying vectors to the host is.
    """
    figures = {}
    for name, (kind, number) in _WORKLOADS.items():
        given = sorted(texts(kind, number * rounds, 0), key=len, reverse=True)
        size = max(1, _MAX_TOKENS // _longest(tokenize(given[:1])))
        batches = [tokenize(given[start : start + size]) for start in range(0, len(given), size)]
        num_tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)

        def compute(batches: list[Features] = batches) -> None:
            for batch in batches:
                embed({name: value.to(_device()) for name, value in batch.items() if hasattr(value, "to")}).cpu()

        with torch.inference_mode():
            figures[f"{name}, tokens/s"] = f"{num_tokens / _seconds(compute, rounds=3):,.0f}"
    return Result(section="Other libraries, in one process, bf16", what=what, figures=figures)


def _longest(features: Features) -> int:
    """Returns the length of a padded batch."""
    return int(features["attention_mask"].shape[1])
