"""`make bench`: `bei serve` under load over HTTP, compared with its engine alone.

Writes benchmarks/results/serve-<dtype>.{md,png} and a JSON report for each workload. Everything is measured in one run
on one machine, with the load generator on it, too: quote the ratios.

    serve.py [--model FOLDER] [--dtype auto|float32|bfloat16] [--requests N]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bei_core.bench import Options, Report, plot, run

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "benchmarks" / "results"
_BODY = json.dumps({"input": "hello", "model": "m"}).encode()


def cases(url: str, requests: int, capacity: float) -> list[Options]:
    """The measurements; `capacity` is the throughput of the `mixed` workload in texts per second."""
    return [
        Options(url=url, label="mixed, 64 clients", workload="mixed", clients=64, num_requests=requests),
        Options(url=url, label="mixed, 1 client", workload="mixed", clients=1, num_requests=requests // 8),
        Options(url=url, label="short, 64 clients", workload="short", clients=64, num_requests=requests),
        Options(url=url, label="long, 64 clients", workload="long", clients=64, num_requests=requests // 16),
        Options(
            url=url, label="mixed, 4 clients x 32", workload="mixed", clients=4, batch=32, num_requests=requests // 24
        ),
        Options(url=url, label="mixed, open at 60%", workload="mixed", rate=0.6 * capacity, num_requests=requests // 2),
    ]


@contextmanager
def server(model: str, dtype: str) -> Iterator[tuple[str, float]]:
    """(URL, seconds from launch to the first answer) of a `bei serve`, which is stopped at the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "bei_core.cli",
        "serve",
        "--model-id",
        model,
        "--dtype",
        dtype,
        "--port",
        str(port),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        first_answer(url, process)
        yield url, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def first_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until the server embeds one text. Raises RuntimeError if the server ends before that."""
    request = urllib.request.Request(f"{url}/v1/embeddings", _BODY, {"content-type": "application/json"})
    while process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=60).read()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.005)
    raise RuntimeError(f"the server ended with {process.returncode}")


def flops_per_token(model: str) -> float:
    """FLOPs for a token of the linear layers of a BERT-like encoder (a multiply-add counts as two)."""
    config = json.loads((Path(model) / "config.json").read_text())
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    return float(2 * layers * (4 * hidden * hidden + 2 * hidden * inner))


def in_process(model: str, dtype: str, count: int) -> dict[str, float]:
    """The results of `inprocess.py` for the `mixed` workload."""
    script = str(Path(__file__).with_name("inprocess.py"))
    command = [sys.executable, script, model, dtype, "mixed", str(count)]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures


def over_http(model: str, dtype: str, requests: int, figures: dict[str, float]) -> tuple[list[Report], list[float]]:
    """(a report for each case, seconds from launch to the first answer of three starts)."""
    starts = []
    for _ in range(3):
        with server(model, dtype) as (_, seconds):
            starts.append(seconds)
    reports: list[Report] = []
    with server(model, dtype) as (url, _):
        for case in cases(url, requests, figures["in_process_texts_per_s"]):
            work = flops_per_token(model)
            report = run(
                msgspec.structs.replace(case, gemm_peak_gflops=figures["gemm_peak_gflops"], flops_per_token=work)
            )
            print(f"{case.label}\n{report}\n", flush=True)
            reports.append(report)
    return reports, starts


def table(reports: Sequence[Report], figures: dict[str, float], starts: Sequence[float]) -> str:
    """The results as Markdown, with the workload of each number."""
    served = reports[0].texts_per_s
    lines = [
        f"Machine: {', '.join(f'{name} {value}' for name, value in reports[0].machine.items())}.",
        "",
        "| workload | texts/s | tokens/s | p50 / p95 / p99 ms | server CPU ms/request | RSS MB | of peak | padding |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(report) for report in reports),
        "",
        "`mixed` texts, three ways, in one run:",
        "",
        "| way | texts/s | of the engine alone |",
        "|---|--:|--:|",
        *(
            f"| {name} | {value:,.0f} | {value / figures['engine_texts_per_s']:.0%} |"
            for name, value in (
                ("engine alone, full batches", figures["engine_texts_per_s"]),
                ("in process: tokenizer, queue, 64 callers", figures["in_process_texts_per_s"]),
                ("HTTP, 64 clients, on the same two processors", served),
            )
        ),
        "",
        f"GEMM peak: {figures['gemm_peak_gflops']:,.0f} GFLOP/s (2048 x 2048 x 2048, same runtime and precision).",
        f"Start from a built engine to the first answer: {', '.join(f'{start:.2f}' for start in starts)} s.",
    ]
    return "\n".join(lines) + "\n"


def _row(report: Report) -> str:
    latency = report.latency_ms
    times = "" if latency is None else f"{latency.p50:.1f} / {latency.p95:.1f} / {latency.p99:.1f}"
    return (
        f"| {report.label}: {report.workload.mean_tokens or 0:.0f} tokens | {report.texts_per_s:,.0f} "
        f"| {report.tokens_per_s or 0:,.0f} | {times} | {report.server_cpu_ms or 0:.2f} "
        f"| {report.server_rss_mb or 0:,.0f} | {report.gemm_share or 0:.0%} | {report.padding_share or 0:.1%} |"
    )


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(_ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=6000)
    options = parser.parse_args()
    os.environ.setdefault("BEI_SERVED_MODEL_NAME", Path(options.model).name)
    figures = in_process(options.model, options.dtype, 3000)
    reports, starts = over_http(options.model, options.dtype, options.requests, figures)
    stem = f"serve-{options.dtype}"
    paths = [_RESULTS / f"{stem}-{index}.json" for index in range(len(reports))]
    for report, path in zip(reports, paths, strict=True):
        report.write(path)
    plot(paths, _RESULTS / f"{stem}.png")
    text = table(reports, figures, starts)
    (_RESULTS / f"{stem}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
