"""Requests per second, latency and CPU time per request of HTTP server libraries, with the same fake engine.

    python benchmarks/http_servers.py                      all of them; writes results/http_servers.{json,md}
    python benchmarks/http_servers.py --only "granian asgi" --requests 2000

Each server answers POST /v1/embeddings: msgspec reads the body, a future that `loop.call_soon` resolves replaces the
engine, orjson writes 384 floats or msgspec their base64. The server has core 0 and the load generator core 1. On a
shared machine `cpu_us` (user + system time of the server's processes per request) is the most reliable figure; requests
per second also depend on what else runs.

Needs: uvicorn httptools uvloop h11 starlette granian hypercorn aiohttp robyn socketify msgspec orjson numpy psutil.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "packages"))

from bei_core.bench.client import Load, drive
from benchmarks.http_servers_apps import SERVERS, answer

psutil: Any = importlib.import_module("psutil")  # it has no types of its own

RESULTS = Path(__file__).parent / "results"
TEXT = "How do I keep a long-running request from holding up the ones that arrive behind it in the queue, please?"
PORT = 8731


def post(text: str, encoding_format: str) -> bytes:
    """A whole HTTP request."""
    body = orjson.dumps({"input": text, "model": "m", "encoding_format": encoding_format})
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1:{PORT}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def running(name: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a server on core 0; yields its process when its port is open."""
    command = [sys.executable, __file__, "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            await_port(process)
            yield process
        finally:
            stop(process)


def await_port(process: subprocess.Popen[str]) -> None:
    """Waits until something listens on PORT. Raises RuntimeError if the process ends or nothing does."""
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"exited with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("does not listen")


def stop(process: subprocess.Popen[str]) -> None:
    """Ends the process and its descendants."""
    pids = [process.pid, *(child.pid for child in children(process.pid))] if process.poll() is None else []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[Any]:
    """The descendants of process `pid`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def cpu_s(pid: int) -> float:
    """User + system time of process `pid` and its descendants."""
    times = [process.cpu_times() for process in [psutil.Process(pid), *children(pid)]]
    return float(sum(t.user + t.system for t in times))


def measure(pid: int, connections: int, encoding_format: str, num_requests: int) -> dict[str, float]:
    """Requests per second, CPU microseconds per request and latency in ms, in a closed loop."""
    request = post(TEXT, encoding_format)
    warmup = num_requests // 5
    load = Load(
        host="127.0.0.1", port=PORT, requests=[request] * (warmup + num_requests), warmup=warmup,
        connections=connections, timeout_s=20.0, cpus=[1],
    )  # fmt: skip
    before = 0.0

    def at_start() -> None:
        nonlocal before
        before = cpu_s(pid)

    outcome = drive(load, at_start)
    used = cpu_s(pid) - before
    if outcome.errors:
        raise RuntimeError(f"{connections} connections: {outcome.errors}")
    latencies = np.asarray(outcome.latencies_ms)
    return {
        "requests_per_s": len(outcome.latencies_ms) / outcome.wall_s,
        "cpu_us": used / num_requests * 1e6,
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "client_cpu_us": outcome.cpu_s / num_requests * 1e6,
    }


def connect(text: str) -> socket.socket:
    """A connection on which one request was sent."""
    connection = socket.create_connection(("127.0.0.1", PORT), 5)
    connection.sendall(post(text, "base64"))
    connection.settimeout(5)
    return connection


def read(connection: socket.socket) -> bytes:
    """What the server sends within 5 s; empty if it closes the connection or sends nothing."""
    with contextlib.suppress(OSError):
        return connection.recv(65536)
    return b""


def accepts() -> bool:
    """Whether the server answers on a new connection."""
    try:
        with connect(TEXT) as connection:
            return read(connection).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def probe_disconnect(name: str) -> bool:
    """Whether the application is told that a client disconnected before its answer is ready."""
    with running(name) as process:
        connect("slow").close()
        time.sleep(0.5)
        stop(process)
        return "GONE" in (process.stdout.read() if process.stdout else "")


def probe_sigterm(name: str) -> dict[str, Any]:
    """On SIGTERM: whether accepted requests are answered, whether new ones are refused, the exit status."""
    with running(name) as process:
        with connect("slow") as waiting:
            time.sleep(0.2)
            process.terminate()
            time.sleep(0.3)
            refused = not accepts()
            answered = read(waiting).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        return {"answers in flight": answered, "refuses new": refused, "exit": process.poll()}


CASES = {"64 base64": (64, "base64"), "64 floats": (64, "float"), "1 base64": (1, "base64")}


def examine(name: str, num_requests: int, repeats: int) -> dict[str, Any]:
    """All results of one server; of the repeats, the median by CPU time."""
    result: dict[str, Any] = {"versions": {p: importlib.metadata.version(p) for p in SERVERS[name][1]}}
    with running(name) as process:
        for case, (connections, encoding_format) in CASES.items():
            count = num_requests if connections > 1 else num_requests // 4
            runs = [measure(process.pid, connections, encoding_format, count) for _ in range(repeats)]
            result[case] = sorted(runs, key=lambda run: run["cpu_us"])[repeats // 2]
        result["rss_mb"] = sum(p.memory_info().rss for p in [psutil.Process(process.pid), *children(process.pid)]) / 1e6
    result["told of a disconnect"] = probe_disconnect(name)
    result["SIGTERM"] = probe_sigterm(name)
    return result


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| server | versions | 64 conn, base64: req/s | CPU us/req | p50 / p99 ms "
        "| 64 conn, floats: req/s | CPU us/req | 1 conn: CPU us/req | p50 / p99 ms "
        "| RSS MB | told of a disconnect | SIGTERM: in flight / new / exit |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"| {name} | {found['failed']} |" + " |" * 10)
            continue
        many, floats, one = (found[case] for case in CASES)
        term = found["SIGTERM"]
        ends = [
            "answered" if term["answers in flight"] else "DROPPED",
            "refused" if term["refuses new"] else "ACCEPTED",
        ]
        cells = [
            name,
            ", ".join(f"{p} {v}" for p, v in found["versions"].items()),
            f"{many['requests_per_s']:,.0f}",
            f"**{many['cpu_us']:.0f}**",
            f"{many['p50_ms']:.1f} / {many['p99_ms']:.1f}",
            f"{floats['requests_per_s']:,.0f}",
            f"{floats['cpu_us']:.0f}",
            f"{one['cpu_us']:.0f}",
            f"{one['p50_ms']:.3f} / {one['p99_ms']:.3f}",
            f"{found['rss_mb']:.0f}",
            "yes" if found["told of a disconnect"] else "no",
            " / ".join([*ends, str(term["exit"])]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def handler_us() -> dict[str, float]:
    """CPU microseconds of the application itself, without a server; every row of the table includes them."""

    async def spin(encoding_format: str, count: int = 3000) -> float:
        body = post(TEXT, encoding_format).split(b"\r\n\r\n", 1)[1]
        start = time.process_time()
        for _ in range(count):
            await answer(body)
        return (time.process_time() - start) / count * 1e6

    return {encoding_format: asyncio.run(spin(encoding_format)) for encoding_format in ("base64", "float")}


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", choices=SERVERS)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.serve:
        os.sched_setaffinity(0, [0])
        SERVERS[options.serve][0](PORT)
        return
    results: dict[str, Any] = {}
    for name in options.only or SERVERS:
        try:
            results[name] = examine(name, options.requests, options.repeats)
        except Exception as fault:
            results[name] = {"failed": f"{type(fault).__name__}: {fault}"}
        print(name, json.dumps(results[name]), flush=True)
    about = {"python": platform.python_version(), "cpus": os.cpu_count(), "handler_us": handler_us()}
    text = f"{table(results)}\n\n{json.dumps(about)}\n"
    print(text)
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "http_servers.json").write_text(json.dumps({"about": about, "servers": results}, indent=1))
        (RESULTS / "http_servers.md").write_text(text)


if __name__ == "__main__":
    main()
