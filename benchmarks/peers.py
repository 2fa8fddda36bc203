"""Compares other embedding servers with ours: same workload, client and machine, in turns in one run.

Writes benchmarks/results/peers.{md,json}. A timed run starts when the machine has been idle for a second, and is
repeated if other processes used a tenth of the CPU time meanwhile. Quote the ratios, which are from the same round.

    peers.py [--infinity PYTHON] [--model FOLDER] [--requests N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bei_core.bench import Options, Report, run
from bei_core.bench.measure import machine
from bei_core.bench.workload import texts
from benchmarks.peers_table import CLIENTS, OURS, Result, Sample, table
from benchmarks.serve import first_answer, server

T = TypeVar("T")

_ROOT = Path(__file__).parents[1]
_RESULTS = _ROOT / "benchmarks" / "results"

_MAX_OTHERS_SHARE = 0.10  # of the CPU time of all processors, for other processes during a timed run
_START_S = 120.0
_ENVIRONMENT = ".venv-infinity"
_INSTALL = (
    f"python3.11 -m venv {_ENVIRONMENT} && {_ENVIRONMENT}/bin/python -m pip install -r requirements/peers-infinity.txt"
)
_PACKAGES = ("infinity-emb", "sentence-transformers", "torch", "transformers", "optimum", "fastapi", "uvicorn")
_VERSIONS = """
import json, platform, sys
from importlib.metadata import version
from itertools import count
print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in sys.argv[1:]}))
"""
_LOOP = """
import json, os, sys, time
import torch
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"torch_dtype": getattr(torch, sys.argv[2])})
for line in sys.stdin:
    texts, batch = json.loads(line)
    model.encode(texts[: 2 * batch], batch_size=batch)
    cpu, wall, took = time.process_time(), time.perf_counter(), []
    for part in [texts] if batch > 1 else [[text] for text in texts]:
        since = time.perf_counter()
        model.encode(part, batch_size=batch)
        took.append((time.perf_counter() - since) * 1e3)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pages = int(open("/proc/self/statm").read().split()[1])
    print(json.dumps([wall, cpu, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, took]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to start; {port} and {model} in `command` are filled in. An empty command means our own server."""

    name: str
    command: tuple[str, ...]
    path: str  # the route for OpenAI's body
    dtype: str


def ours() -> list[Peer]:
    """Our server, in both precisions."""
    return [Peer(OURS, (), "/v1/embeddings", dtype) for dtype in ("bfloat16", "float32")]


def infinity(python: str) -> list[Peer]:
    """Infinity from `python`'s environment: with its defaults, and without BetterTransformer."""
    start = (str(Path(python).with_name("infinity_emb")), "v2", "--model-id", "{model}", "--url-prefix", "/v1")
    listen = ("--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning")
    kinds = {"Infinity": (), "Infinity --no-bettertransformer": ("--no-bettertransformer",)}
    dtypes: dict[str, tuple[str, ...]] = {"float32": (), "bfloat16": ("--dtype", "bfloat16")}
    return [
        Peer(name, (*start, *listen, *kind, *flags), "/v1/embeddings", dtype)
        for name, kind in kinds.items()
        for dtype, flags in dtypes.items()
    ]


def in_turns(ours: Sequence[Peer], peers: Sequence[Peer]) -> list[Peer]:
    """Both lists, interleaved: ours, a peer, ours, a peer, and the rest of the longer list."""
    interleaved: list[Peer] = []
    for index in range(max(len(ours), len(peers))):
        interleaved += [*ours[index : index + 1], *peers[index : index + 1]]
    return interleaved


def launch(peer: Peer, model: str) -> AbstractContextManager[tuple[str, float]]:
    """(URL, seconds from launch to the first answer) of a server, which is stopped at the end of the block."""
    return _started(peer, model) if peer.command else server(model, peer.dtype)


@contextmanager
def _started(peer: Peer, model: str) -> Iterator[tuple[str, float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [part.format(port=port, model=model) for part in peer.command]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    timeout = threading.Timer(_START_S, process.kill)
    try:
        timeout.start()
        first_answer(f"http://127.0.0.1:{port}", process)
        timeout.cancel()
        yield f"http://127.0.0.1:{port}", time.perf_counter() - started
    finally:
        timeout.cancel()
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def busy_seconds() -> float:
    """CPU time of all processes since boot, without I/O wait."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process and of its descendants, running and ended."""
    living = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    return float(sum(os.times()[:4]) + living)


def others_share(busy: float, own: float, seconds: float) -> float:
    """Share of all processors that other processes used, from the CPU time of all and our own in `seconds`."""
    return max(0.0, busy - own) / (seconds * (os.cpu_count() or 1))


def wait_for_quiet() -> None:
    """Waits for a second in which the machine is idle."""
    for waited in count():
        before = busy_seconds()
        time.sleep(1)
        if others_share(busy_seconds() - before, 0.0, 1.0) < _MAX_OTHERS_SHARE:
            return
        if waited % 60 == 10:
            print("    waiting until the machine is idle", flush=True)


def undisturbed(measure: Callable[[], T], tries: int = 4) -> tuple[T, float]:
    """(result of `measure` on an otherwise idle machine, share that others used); the last try counts in any case."""
    for left in reversed(range(tries)):
        wait_for_quiet()
        busy, own, start = busy_seconds(), own_seconds(), time.perf_counter()
        value = measure()
        share = others_share(busy_seconds() - busy, own_seconds() - own, time.perf_counter() - start)
        if share < _MAX_OTHERS_SHARE or not left:
            return value, share
        print(f"    other processes used {share:.0%} of the CPU time: measuring again", flush=True)
    raise ValueError("`tries` must be at least 1")


def over_http(peer: Peer, model: str, requests: int, turn: int) -> list[Sample]:
    """One sample for each number of clients, from one start of the server."""
    found: list[Sample] = []
    with launch(peer, model) as (url, _):
        for clients in CLIENTS:
            options = _options(peer, url, clients, requests)
            report, share = undisturbed(partial(run, options))
            found.append(_sample(peer, clients, turn, report, share))
            _say(found[-1])
    return found


def _options(peer: Peer, url: str, clients: int, requests: int) -> Options:
    size, warmup = _sizes(clients, requests)
    return Options(url=url, path=peer.path, workload="mixed", clients=clients, num_requests=size, warmup=warmup)


def _sizes(clients: int, requests: int) -> tuple[int, int]:
    """(number of measured requests, number of warm-up requests)."""
    return (requests, 128) if clients > 1 else (requests // 4, 32)


def _sample(peer: Peer, clients: int, turn: int, report: Report, share: float) -> Sample:
    """The report's numbers, without tokens, which servers count differently. Raises RuntimeError if one is missing."""
    latency = report.latency_ms
    if report.errors or latency is None or report.server_cpu_ms is None or report.server_rss_mb is None:
        raise RuntimeError(f"{peer.name} {peer.dtype}: errors {report.errors}, CPU {report.server_cpu_ms} ms")
    return Sample(
        name=peer.name,
        dtype=peer.dtype,
        clients=clients,
        turn=turn,
        workload=str(msgspec.structs.replace(report.workload, mean_tokens=None)),
        texts_per_s=report.texts_per_s,
        latency_ms=(latency.p50, latency.p95, latency.p99),
        cpu_ms=report.server_cpu_ms,
        rss_mb=report.server_rss_mb,
        others_share=share,
    )


def _say(sample: Sample) -> None:
    print(
        f"{sample.turn} {sample.name} {sample.dtype}, {sample.clients}: {sample.texts_per_s:,.0f} texts/s, "
        f"{sample.cpu_ms:.2f} CPU ms, others {sample.others_share:.1%}",
        flush=True,
    )


def in_a_loop(python: str, model: str, dtype: str, requests: int, turn: int) -> list[Sample]:
    """sentence-transformers' `encode` with the same texts, without a server: in batches of 64, then one by one."""
    command = [python, "-c", _LOOP, model, dtype]
    pipe, found = subprocess.PIPE, []
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as child:
        for batch in CLIENTS:
            size, warmup = _sizes(batch, requests)
            given = texts("mixed", warmup + size, 0)[warmup:]
            answer, share = undisturbed(partial(_ask, child, [given, batch]))
            found.append(_loop_sample(dtype, batch, turn, given, answer, share))
            _say(found[-1])
    return found


def _ask(child: subprocess.Popen[str], job: list[object]) -> tuple[float, float, float, list[float]]:
    """(seconds, CPU seconds, RSS in MB, ms of each call). Raises RuntimeError if the subprocess has ended."""
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("no pipe to the loop")
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"the loop ended with {child.wait()}")
    return msgspec.json.decode(line, type=tuple[float, float, float, list[float]])


def _loop_sample(
    dtype: str,
    batch: int,
    turn: int,
    given: Sequence[str],
    answer: tuple[float, float, float, list[float]],
    share: float,
) -> Sample:
    wall, cpu, rss, took = answer
    cuts = statistics.quantiles(took, n=100, method="inclusive") if batch == 1 else []
    return Sample(
        name="sentence-transformers, no HTTP",
        dtype=dtype,
        clients=batch,
        turn=turn,
        workload=f"mixed: {len(given):,} texts, seed 0; encode, batch {batch}",
        texts_per_s=len(given) / wall,
        latency_ms=(cuts[49], cuts[94], cuts[98]) if cuts else None,
        cpu_ms=cpu / len(given) * 1e3,
        rss_mb=rss,
        others_share=share,
    )


def versions(python: str) -> dict[str, str] | None:
    """Versions of the packages in `python`'s environment; None if one is not installed."""
    command = [python, "-c", _VERSIONS, *_PACKAGES]
    try:
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return msgspec.json.decode(output, type=dict[str, str])


def measure(python: str, model: str, requests: int, rounds: int) -> Result:
    """The results of all rounds."""
    theirs = versions(python)
    servers = in_turns(ours(), infinity(python) if theirs else [])
    samples: list[Sample] = []
    for turn in range(rounds):
        for peer in servers:
            samples += over_http(peer, model, requests, turn)
        for dtype in ("float32", "bfloat16") if theirs else ():
            samples += in_a_loop(python, model, dtype, requests, turn)
    return Result(
        machine=machine(),
        versions={"bei-core": version("bei-core"), "openvino": version("openvino"), **(theirs or {})},
        missing={} if theirs else {"Infinity": _INSTALL, "sentence-transformers": _INSTALL},
        samples=samples,
    )


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--infinity", default=str(_ROOT / _ENVIRONMENT / "bin" / "python"), help="its interpreter")
    parser.add_argument("--model", default=str(_ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("BEI_SERVED_MODEL_NAME", Path(options.model).name)
    os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    result = measure(options.infinity, options.model, options.requests, options.rounds)
    (_RESULTS / "peers.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    text = table(result)
    (_RESULTS / "peers.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
