"""Runs one benchmark: from options to a report."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta

from bei_core.bench.client import Load, Outcome, drive
from bei_core.bench.observe import Server, Snapshot
from bei_core.bench.report import Latency, Report, Workload
from bei_core.bench.workload import Wire, texts
from bei_core.errors import ConfigError

COUNTERS = (
    "bei_padding_tokens_total",
    "bei_engine_busy_seconds_total",
    "te_batch_next_tokens_sum",
    "te_batch_next_tokens_count",
    "te_batch_next_size_sum",
    "te_request_count",
    "te_request_failure",
    *(
        f"te_request_{stage}_duration_{part}"
        for stage in ("tokenization", "queue", "inference")
        for part in ("sum", "count")
    ),
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: a closed loop with `clients` clients, or an open loop if `rate` (requests per second) is set."""

    url: Annotated[str, Meta(description="URL of the server.")] = "http://127.0.0.1:7997"
    workload: Annotated[
        Literal["tiny", "short", "mixed", "long"], Meta(description="Texts to send, by their length.")
    ] = "mixed"
    num_requests: Annotated[int, Meta(description="Requests to measure.")] = 5000
    warmup: Annotated[int, Meta(description="Requests before the clock starts.")] = 256
    clients: Annotated[int, Meta(description="Clients that each wait for their reply (closed loop).")] = 64
    rate: Annotated[float, Meta(description="Requests a second (open loop); 0 measures a closed loop.")] = 0.0
    max_outstanding: Annotated[
        int, Meta(description="Open loop: requests in flight; further ones wait in the client, and the wait counts.")
    ] = 512
    seed: Annotated[int, Meta(description="Seed of the choice of texts.")] = 0
    shape: Annotated[Literal["openai", "tei"], Meta(description="API whose bodies are sent.")] = "openai"
    path: Annotated[str | None, Meta(description="Another path for the same bodies.")] = None
    batch: Annotated[int, Meta(description="Texts of one request.")] = 1
    encoding_format: Annotated[Literal["base64", "float"], Meta(description="How OpenAI's replies carry vectors.")] = (
        "base64"
    )
    model: Annotated[str, Meta(description="Name of the model in requests.")] = "bench"
    api_key: Annotated[str | None, Meta(description="Key to send.")] = None
    timeout_s: Annotated[float, Meta(description="Seconds after which a request counts as failed.")] = 60.0
    label: Annotated[str, Meta(description="Name of this run in plots.")] = ""
    pid: Annotated[int | None, Meta(description="Process id of the server, if its port does not tell.")] = None
    client_cpus: list[int] = []
    counters: tuple[str, ...] = COUNTERS
    gemm_peak_gflops: Annotated[
        float | None, Meta(description="Matrix multiplication peak of the machine, to report its share.")
    ] = None
    flops_per_token: Annotated[float | None, Meta(description="Operations the model needs for a token.")] = None

    def __post_init__(self) -> None:
        for name in ("num_requests", "clients", "max_outstanding"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1")
        if self.rate < 0 or self.warmup < 0:
            raise ConfigError("`rate` and `warmup` cannot be negative")


def run(options: Options) -> Report:
    """Runs one benchmark. Raises ConfigError for impossible options, LoadError if the load generator fails."""
    return run_with_latencies(options)[0]


def run_with_latencies(options: Options) -> tuple[Report, list[float]]:
    """Returns the report of `run`, and the latency of each answered request in ms."""
    url = split(options.url)
    wire = _wire(options, url)
    sent = texts(options.workload, (options.warmup + options.num_requests) * options.batch, options.seed)
    server = Server(url, options.pid)
    before: list[Snapshot] = []
    load = _load(options, url, wire.requests(sent))
    outcome = drive(load, lambda: before.append(server.snapshot()))
    return _report(options, wire, sent, outcome, before[0], server), outcome.latencies_ms


def split(url: str) -> SplitResult:
    """Returns the parts of a URL, always with a port. Raises ConfigError if it is not an http or https URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"`url` must be http://host:port, got `{url}`")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts._replace(netloc=f"{host}:{port}")


def _wire(options: Options, url: SplitResult) -> Wire:
    return Wire(
        host=url.netloc,
        prefix=url.path.rstrip("/"),
        shape=options.shape,
        path=options.path,
        batch=options.batch,
        encoding_format=options.encoding_format,
        model=options.model,
        api_key=options.api_key,
    )


def _load(options: Options, url: SplitResult, requests: list[bytes]) -> Load:
    return Load(
        host=url.hostname or "",
        port=url.port or 0,
        tls=url.scheme == "https",
        requests=requests,
        warmup=options.warmup,
        connections=options.max_outstanding if options.rate else options.clients,
        rate=options.rate,
        seed=options.seed,
        timeout_s=options.timeout_s,
        cpus=options.client_cpus,
    )


def _report(
    options: Options, wire: Wire, sent: list[str], outcome: Outcome, before: Snapshot, server: Server
) -> Report:
    after = server.snapshot()
    num_ok = len(outcome.latencies_ms)
    counters = {name: after.counters[name] - before.counters.get(name, 0.0) for name in after.counters}
    tokens_per_s = outcome.num_tokens / outcome.wall_s if outcome.num_tokens else None
    return Report(
        label=options.label or f"{options.workload}, {_loop(options)}",
        workload=_workload(options, wire, sent[options.warmup * options.batch :], outcome),
        num_ok=num_ok,
        errors=outcome.errors,
        wall_s=outcome.wall_s,
        requests_per_s=num_ok / outcome.wall_s,
        texts_per_s=num_ok * options.batch / outcome.wall_s,
        tokens_per_s=tokens_per_s,
        latency_ms=Latency.of(outcome.latencies_ms),
        lag_ms=Latency.of(outcome.lags_ms) if options.rate else None,
        server_cpu_ms=_cpu_ms(before, after, options.num_requests),
        server_rss_mb=after.rss_mb,
        client_cpu_us=outcome.cpu_s / options.num_requests * 1e6,
        gemm_peak_gflops=options.gemm_peak_gflops,
        gemm_share=_gemm_share(options, tokens_per_s),
        padding_share=_padding_share(counters),
        engine_busy_share=_share(counters.get("bei_engine_busy_seconds_total"), outcome.wall_s),
        counters={name: counters[name] for name in options.counters if name in counters},
        machine=machine(),
        server=server.info(),
    )


def _loop(options: Options) -> str:
    if options.rate:
        return f"open loop, {options.rate:g} requests/s"
    return f"closed loop, {options.clients} client{'s' if options.clients > 1 else ''}"


def _workload(options: Options, wire: Wire, sent: list[str], outcome: Outcome) -> Workload:
    answered = len(outcome.latencies_ms) * options.batch
    return Workload(
        name=options.workload,
        loop=_loop(options),
        route=wire.route,
        encoding_format=wire.encoding_format if wire.shape == "openai" else "json",
        num_requests=options.num_requests,
        batch=options.batch,
        seed=options.seed,
        mean_words=sum(len(text.split()) for text in sent) / len(sent),
        mean_tokens=outcome.num_tokens / answered if outcome.num_tokens else None,
    )


def _cpu_ms(before: Snapshot, after: Snapshot, num_requests: int) -> float | None:
    if before.cpu_s is None or after.cpu_s is None:
        return None
    return (after.cpu_s - before.cpu_s) / num_requests * 1e3


def _gemm_share(options: Options, tokens_per_s: float | None) -> float | None:
    if not (tokens_per_s and options.flops_per_token and options.gemm_peak_gflops):
        return None
    return tokens_per_s * options.flops_per_token / 1e9 / options.gemm_peak_gflops


def _padding_share(counters: dict[str, float]) -> float | None:
    """Returns the share (0 to 1) of the computed tokens that were padding; None if the server has no such counters."""
    padding, real = counters.get("bei_padding_tokens_total"), counters.get("te_batch_next_tokens_sum")
    return None if padding is None or real is None else _share(padding, padding + real)


def _share(part: float | None, whole: float) -> float | None:
    return part / whole if part is not None and whole > 0 else None


def machine() -> dict[str, str | int]:
    """Returns processor, number of CPUs, Python and system, for the report."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
