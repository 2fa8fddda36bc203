"""Sends many texts of mixed lengths and routes to a server, and reports what remains in it.

    make soak                        a million texts
    make soak ARGS="--texts 20000 --warm-up 5000"
    make soak ARGS="--model-id FOLDER"    another model: a small one shows what the server itself leaves behind

Memory is read after each twentieth. Fails if it drifts by 2% or more after the warm-up, or if a file, a thread, a
queued item, or a task, future, request or input in memory is left. Before the warm-up, the server compiles its graphs
for lone texts, which it does in idle time. The warm-up has to be long enough to meet all shapes of batches, whose
kernels stay in memory.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.soak_server import HEAD
from tests.conftest import MINILM
from tests.e2e.server import Server, ask, bugs, request_bytes, wait_until
from tests.e2e.server import openai_request as openai

ROOT = Path(__file__).resolve().parents[1]
PREFIX = ("env", f"PYTHONPATH={ROOT / 'packages'}:{ROOT}")
MAX_DRIFT = 0.02
NUM_CLIENTS = 8
NUM_STEPS = 20
NUM_LONE_TEXTS = 100  # after which an engine on the CPU compiles graphs for them
GRAPHS = "graphs for single texts"  # in the log when it has done so, or will not
PATIENCE_S = 120.0  # for these graphs; other engines have none
TEXTS_PER_REQUEST = (1, 1, 1, 2, 8, 32)


class Counting(Server):
    """A server that tells what it has in memory."""

    program = (sys.executable, "-m", "benchmarks.soak_server")

    def held(self) -> Counter[str]:
        """The number of tasks, futures, requests and inputs, by type."""
        num_lines = len(self._lines())
        self.send_signal(signal.SIGUSR1)
        wait_until(lambda: len(self._lines()) > num_lines)
        pairs = (pair.partition("=") for pair in self._lines()[-1].removeprefix(HEAD).split())
        return Counter({name: int(count) for name, _, count in pairs})

    def _lines(self) -> list[str]:
        return [line for line in self.log.splitlines(keepends=True) if line.startswith(HEAD) and line.endswith("\n")]


def request_of(random_: random.Random) -> tuple[bytes, int]:
    """A request, and how many texts are in it."""
    count = random_.choice(TEXTS_PER_REQUEST)
    texts = ["word " * min(400, int(random_.lognormvariate(2.5, 1)) + 1) for _ in range(count)]
    listed = ",".join(f'"{text}"' for text in texts)
    route = random_.choice(["/v1/embeddings", "/embed", "/tokenize", "/embed_all"])
    if route.startswith("/v1"):
        return openai(texts), count
    return request_bytes(route, f'{{"inputs":[{listed}]}}'.encode()), count


def compile_lone_graphs(server: Server) -> None:
    """Asks for lone texts until the engine compiles graphs for them, and waits for the end of it."""
    with server.connect() as connection:
        for _ in range(NUM_LONE_TEXTS):
            ask(connection, request_bytes("/embed", b'{"inputs":"a"}'))
    until = time.monotonic() + PATIENCE_S
    while GRAPHS not in server.log:
        if time.monotonic() > until:
            return print(f"the server has logged nothing of its {GRAPHS}", flush=True)
        time.sleep(0.1)
    return None


def run(server: Server, seed: int, num_texts: int) -> None:
    """Asks for so many texts over several connections."""

    def client(number: int) -> None:
        random_, left = random.Random(f"{seed} {number}"), num_texts // NUM_CLIENTS
        with server.connect() as connection:
            while left > 0:
                request, count = request_of(random_)
                while (reply := ask(connection, request)).status_code == 429:  # the machine does other work
                    time.sleep(int(reply.headers["retry-after"]))
                if reply.status_code != 200:
                    raise RuntimeError(f"{reply.status_code}: {reply.text[:200]}")
                left -= count

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(client, range(NUM_CLIENTS)))


def main() -> None:
    """Runs the soak and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--warm-up", type=int, help="texts before the drift counts; a twentieth by default")
    parser.add_argument("--model-id", default=str(MINILM), help="a folder of a model that gives vectors")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warm_up = options.warm_up or options.texts // NUM_STEPS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = Counting(folder / "server", folder / "cache", PREFIX, model_id=options.model_id)
        stack.enter_context(server)
        process, sizes, began = psutil.Process(server.pid), list[int](), time.perf_counter()
        compile_lone_graphs(server)
        run(server, options.seed, warm_up)
        time.sleep(2)  # until the server has seen that the connections are closed
        files, threads, held = process.num_fds(), process.num_threads(), server.held()
        for step in range(NUM_STEPS):
            time.sleep(2)  # freed memory is returned a second after a large request
            sizes.append(process.memory_info().rss)
            print(f"{time.perf_counter() - began:.0f} s: {sizes[-1] / 1e6:.1f} MB", flush=True)
            run(server, options.seed + 1 + step, (options.texts - warm_up) // NUM_STEPS)
        time.sleep(2)
        drift, left = process.memory_info().rss / sizes[0] - 1, server.held() - held
        after = (process.num_fds(), process.num_threads(), server.metrics()["te_queue_size"])
        errors = bugs(server.log)
    seconds = time.perf_counter() - began
    print(f"{options.texts} texts in {seconds:.0f} s, {warm_up} of them as warm-up: drift {100 * drift:+.2f}%")
    print(f"files {files} -> {after[0]}, threads {threads} -> {after[1]}, queued {after[2]:g}")
    print(f"in memory {dict(held)}, left {dict(left)}", *errors, sep="\n")
    is_clean = after[0] <= files + 1 and after[1] <= threads and not after[2] and not left and not errors
    sys.exit(not (is_clean and drift < MAX_DRIFT))


if __name__ == "__main__":
    main()
