"""The overhead of Truss's server: our package in both forms, and an empty endpoint, with an engine that takes no time.

    python benchmarks/truss.py            writes results/truss.{json,md}
    python benchmarks/truss.py --rounds 1 --requests 500

The engine returns 1,024 numbers per text. Servers run on core 0 and clients on core 1. Every round measures each server
in turn, so that other work on the machine affects all of them: compare the ratios of a round. `empty` is a model.py
whose embeddings() returns a prepared reply of the same size: no model.py under Truss's server can be faster.

Needs: `make test`'s environments (scripts/test_envs.sh), a model (make install), taskset.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from baseten_performance_client import PerformanceClient, RequestProcessingPreference

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "packages"))

from bei_core.bench import Options, run
from bei_core.bench.workload import texts
from tests.conftest import MINILM
from tests.e2e.environments import ROOT, TRUSS, run_in
from tests.e2e.truss_server import Server, Truss, lay_out

RESULTS = Path(__file__).parent / "results"
SERVER_CPU, CLIENT_CPU = 0, 1
BATCH = 16
WIDTH = 1024
WORKLOAD: Final = "short"  # queries of mean 11 tokens

_PATH = "/v1/embeddings"
_OURS = """
from bench_fake import install
install()
from our_model import Model
"""

# Replies for the two workloads: for one text in base64, and for BATCH texts as numbers.
_EMPTY = """
import json, logging
from pathlib import Path
from starlette.requests import Request
from starlette.responses import Response

ONE, MANY = (Path("data", name).read_bytes() for name in ("one.json", "many.json"))


class Model:
    def load(self) -> None:
        logging.getLogger("uvicorn.access").disabled = True

    async def predict(self, request: Request) -> Response:
        return Response(ONE, media_type="application/json")

    async def embeddings(self, request: Request) -> Response:
        body = MANY if len(await request.body()) > 400 else ONE
        return Response(body, media_type="application/json")
"""
_SERVE = "from bench_fake import install; install(); from bei_core.cli.main import main; main()"


class Pinned(Server):
    """Truss's server, on core SERVER_CPU."""

    def command(self) -> list[str]:
        """The command that starts it."""
        return ["taskset", "-c", str(SERVER_CPU), *super().command()]


class PinnedServe(Server):
    """`bei serve` on core SERVER_CPU, as the docker_server form runs it."""

    ready = "/health/ready"

    def command(self) -> list[str]:
        """The command that starts it."""
        serve = [sys.executable, "-c", _SERVE, "serve", "--model-id", str(MINILM), "--port", str(self.port)]
        return ["taskset", "-c", str(SERVER_CPU), *serve]


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """Starts all servers; yields the URL of each by its name."""
    truss = lay_out(folder / "image", {"model_id": str(MINILM)})
    shutil.copy(ROOT / "benchmarks" / "truss_fake.py", truss.root / "packages" / "bench_fake.py")
    shutil.copy(ROOT / "model" / "model.py", truss.root / "packages" / "our_model.py")
    with ExitStack() as stack:

        def start(name: str, kind: type[Server], model: str) -> str:
            root = folder / name / "root"
            shutil.copytree(truss.root, root)
            (root / "app" / "model" / "model.py").write_text(model)
            _write_replies(root / "app" / "data")
            return stack.enter_context(kind(Truss(truss.upload, truss.context, root), folder / name / "run")).url

        ours = start("model.py", Pinned, _OURS)
        yield {
            "empty": f"{start('empty', Pinned, _EMPTY)}/v1/embeddings",
            "model.py": f"{ours}/v1/embeddings",
            "model.py by Truss's own predict": f"{ours}/v1/models/model:predict",
            "docker_server": f"{start('docker_server', PinnedServe, _OURS)}/v1/embeddings",
        }


def _write_replies(data: Path) -> None:
    """Writes prepared replies of the same size as a model's."""
    rows = np.random.default_rng(0).standard_normal((BATCH, WIDTH)).astype(np.float32)
    usage = {"prompt_tokens": 100, "total_tokens": 100}
    one: list[Any] = [{"object": "embedding", "index": 0, "embedding": base64.b64encode(rows[0].tobytes()).decode()}]
    many = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(rows)]
    data.mkdir(exist_ok=True)
    for name, items in (("one.json", one), ("many.json", many)):
        (data / name).write_text(json.dumps({"object": "list", "data": items, "model": "m", "usage": usage}))


def single(address: str, num_requests: int) -> dict[str, float]:
    """Measures requests of one text over 64 connections."""
    parts = urlsplit(address)
    url = f"{parts.scheme}://{parts.netloc}"
    report = run(
        Options(url=url, path=parts.path, workload=WORKLOAD, num_requests=num_requests, client_cpus=[CLIENT_CPU])
    )
    if report.errors:
        raise RuntimeError(f"{address}: {report.errors}")
    return {"requests_per_s": report.requests_per_s, "server_cpu_ms": report.server_cpu_ms or 0.0}


def batched(address: str, num_texts: int) -> dict[str, float]:
    """Measures requests of BATCH texts by Baseten's performance client, which always calls /v1/embeddings."""
    num_texts -= num_texts % BATCH
    client = PerformanceClient(base_url=address.removesuffix(_PATH), api_key="any")
    preference = RequestProcessingPreference(batch_size=BATCH, max_concurrent_requests=64)
    sent = list(texts(WORKLOAD, num_texts, 0))
    client.embed(input=sent[: 10 * BATCH], model="m", preference=preference)
    started = time.perf_counter()
    reply = client.embed(input=sent, model="m", preference=preference)
    seconds = time.perf_counter() - started
    assert reply.numpy().shape == (num_texts, WIDTH)
    return {"embeddings_per_s": num_texts / seconds}


def measure(rounds: int, num_requests: int) -> dict[str, list[dict[str, float]]]:
    """The results of each server in each round."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as addresses:
        os.sched_setaffinity(0, {CLIENT_CPU})
        for number in range(rounds):
            for name, address in addresses.items():
                measured = single(address, num_requests)
                if address.endswith(_PATH):
                    measured |= batched(address, num_requests * 2)
                found.setdefault(name, []).append(measured)
                print(number, name, {key: round(value, 3) for key, value in measured.items()}, flush=True)
    return found


def starts(num_starts: int) -> list[float]:
    """Seconds from process start to readiness under Truss's server; all-MiniLM-L6-v2, with its engine in the cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truss = lay_out(folder / "image", {"model_id": str(MINILM), "cache_dir": str(folder / "cache")})
        found = []
        for number in range(num_starts + 1):  # the first builds the engine and is not counted
            started = time.perf_counter()
            with Server(truss, folder / str(number)):
                found.append(time.perf_counter() - started)
        return found[1:]


def table(found: dict[str, list[dict[str, float]]], note: str) -> str:
    """Medians over the rounds: of each figure, and of its ratio to the empty endpoint's in the same round."""
    lines = [f"# What Truss's server costs\n\n{note}\n"]
    share = "of the empty endpoint's"
    lines.append(
        f"| server | single texts: req/s | {share} | CPU ms/request | {share} | 16 a request: texts/s | {share} |"
    )
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, rows in found.items():
        cells = [f"{_median(rows, 'requests_per_s'):,.0f}", _ratio(rows, found["empty"], "requests_per_s")]
        cells += [f"{_median(rows, 'server_cpu_ms'):.2f}", _ratio(found["empty"], rows, "server_cpu_ms")]
        if "embeddings_per_s" in rows[0]:
            cells += [f"{_median(rows, 'embeddings_per_s'):,.0f}", _ratio(rows, found["empty"], "embeddings_per_s")]
        else:
            cells += ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _median(rows: Sequence[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _ratio(rows: Sequence[dict[str, float]], empty: Sequence[dict[str, float]], key: str) -> str:
    ratios = [row[key] / other[key] for row, other in zip(rows, empty, strict=True)]
    return f"{statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})"


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=6000)
    options = parser.parse_args()
    seconds = starts(5)
    found = measure(options.rounds, options.requests)
    version = run_in(TRUSS, ["-c", "from importlib.metadata import version; print(version('truss'))"]).strip()
    machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    note = (
        f"`python benchmarks/truss.py --rounds {options.rounds} --requests {options.requests}`, truss {version}, "
        f"{machine}; server on one core, client on another, {WIDTH} numbers per text, texts of mean 11 tokens, "
        "64 concurrent requests. Medians of the rounds; in brackets the range of a round's ratio (for CPU time, the "
        "empty endpoint's divided by the server's). Other work on the machine slows a server with two threads less "
        "than one with a single thread, such as `empty`: so CPU time is more reliable than requests per second."
    )
    text = table(found, note) + (
        f"\nFrom process start to readiness under Truss's server, with the engine of all-MiniLM-L6-v2 in the cache: "
        f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}, {len(seconds)} starts).\n"
    )
    print(text)
    (RESULTS / "truss.md").write_text(text)
    (RESULTS / "truss.json").write_text(
        json.dumps({"note": note, "rounds": found, "start_s": seconds}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
