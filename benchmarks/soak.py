"""Sends many texts of mixed lengths and routes to a server, and reports what remains in it.

    make soak                        a million texts
    make soak ARGS="--texts 20000"

Fails if memory drifts by 2% or more after the first twentieth, or if a file, a task or a queued item is left.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from tests.e2e.server import Server, ask, request_bytes
from tests.e2e.server import openai_request as openai

MAX_DRIFT = 0.02
NUM_CLIENTS = 8
TEXTS_PER_REQUEST = (1, 1, 1, 2, 8, 32)


def request_of(random_: random.Random) -> tuple[bytes, int]:
    """A request, and how many texts are in it."""
    count = random_.choice(TEXTS_PER_REQUEST)
    texts = ["word " * min(400, int(random_.lognormvariate(2.5, 1)) + 1) for _ in range(count)]
    listed = ",".join(f'"{text}"' for text in texts)
    route = random_.choice(["/v1/embeddings", "/embed", "/tokenize", "/embed_all"])
    if route.startswith("/v1"):
        return openai(texts), count
    return request_bytes(route, f'{{"inputs":[{listed}]}}'.encode()), count


def run(server: Server, seed: int, num_texts: int) -> None:
    """Asks for so many texts over several connections."""

    def client(number: int) -> None:
        random_, left = random.Random(f"{seed} {number}"), num_texts // NUM_CLIENTS
        with server.connect() as connection:
            while left > 0:
                request, count = request_of(random_)
                reply = ask(connection, request)
                if reply.status_code != 200:
                    raise RuntimeError(f"{reply.status_code}: {reply.text[:200]}")
                left -= count

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(client, range(NUM_CLIENTS)))


def main() -> None:
    """Runs the soak and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Server(Path(name) / "server", Path(name) / "cache") as server:
        process = psutil.Process(server.pid)
        run(server, options.seed, options.texts // 20)
        time.sleep(2)
        memory, files, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
        began = time.perf_counter()
        run(server, options.seed + 1, options.texts - options.texts // 20)
        seconds = time.perf_counter() - began
        time.sleep(2)
        drift = process.memory_info().rss / memory - 1
        after = (process.num_fds(), process.num_threads(), server.metrics()["te_queue_size"])
        has_tracebacks = "Traceback" in server.log
    print(f"{options.texts} texts in {seconds:.0f} s: memory {memory / 1e6:.0f} MB, drift {100 * drift:+.2f}%")
    print(f"files {files} -> {after[0]}, threads {threads} -> {after[1]}, queued {after[2]:g}")
    is_clean = after[0] <= files + 1 and after[1] <= threads and not after[2] and not has_tracebacks
    sys.exit(not (is_clean and drift < MAX_DRIFT))


if __name__ == "__main__":
    main()
