"""Attacks a server of its own, on loopback, and writes what each did to benchmarks/results/chaos.md.

    make chaos                       ten minutes
    make chaos ARGS="--seconds 60"   the attacks once each, and fewer faults

The order of the attacks and the faults are those of `--seed`. Each attack runs while another client asks
`/health/live` every 5 ms; its slowest reply bounds how long the event loop stood still. The first row is that without
any attack, which is what other work on the machine costs.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.attacks import ATTACKS, Attack
from tests.chaos.test_faults import FaultyServer, bombard
from tests.e2e.server import Server, ask, read_reply, request_bytes

RESULTS = Path(__file__).parent / "results" / "chaos.md"
_PATIENCE_S = 300.0  # for a reply; what the engine needs for 260,000 tokens on a slow machine
PROBE = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"
HEAD = """# Attacks

Written by `make chaos`; `benchmarks/chaos.py` says what is measured. Seed {seed}, {seconds:g} s, {date}, {cpus}
processors, load of other work at the start {load:.1f}.

| attack | times | status | seconds | slowest `/health/live`, ms | median, ms | memory before, peak, after, MB |
|---|--:|---|--:|--:|--:|---|
"""


@dataclass
class Watched:
    """The results of the health probe."""

    lags_ms: list[float] = field(default_factory=list)
    peak: int = 0


@contextmanager
def watched(server: Server) -> Iterator[Watched]:
    """Request health continuously during the `with` block."""
    found, done, process = Watched(), threading.Event(), psutil.Process(server.pid)

    def probe() -> None:
        with server.connect() as connection:
            while not done.wait(0.005):
                began = time.perf_counter()
                ask(connection, PROBE)
                found.lags_ms.append(1e3 * (time.perf_counter() - began))
                found.peak = max(found.peak, process.memory_info().rss)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


@dataclass
class Row:
    """One attack's figures, over all its rounds."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    lags_ms: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # before, peak, after, in bytes

    def line(self, name: str) -> str:
        """The row of the table."""
        lags = sorted(self.lags_ms)
        statuses = ", ".join(f"{status} x {count}" if count > 1 else status for status, count in self.statuses.items())
        memory = ", ".join(f"{size / 1e6:.0f}" for size in self.memory)
        times = sum(self.statuses.values())
        middle = lags[len(lags) // 2]
        return f"| {name} | {times} | {statuses} | {self.seconds:.2f} | {lags[-1]:.0f} | {middle:.1f} | {memory} |\n"


def send(server: Server, attack: Attack, row: Row) -> None:
    """One round of an attack. The status has a mark where it is not one that the attack must get."""
    body, process = attack.body(), psutil.Process(server.pid)
    before = process.memory_info().rss
    with server.connect() as connection, watched(server) as seen:
        connection.settimeout(_PATIENCE_S)
        began = time.perf_counter()
        connection.sendall(request_bytes(attack.path, body, *attack.headers))
        reply = None
        with suppress(TimeoutError):
            reply = read_reply(connection)
        row.seconds = max(row.seconds, time.perf_counter() - began)
    time.sleep(1.5)  # memory is returned a second after the end
    status = "no reply" if reply is None else str(reply.status_code)
    is_right = reply is not None and reply.status_code in attack.statuses
    row.statuses[status if is_right else f"{status} (wrong)"] += 1
    row.lags_ms += seen.lags_ms
    row.memory = [before, seen.peak, process.memory_info().rss]


def quiet(server: Server, seconds: float) -> Row:
    """The server without an attack."""
    size = psutil.Process(server.pid).memory_info().rss
    with watched(server) as seen:
        time.sleep(seconds)
    return Row(Counter({"200": 1}), seconds, seen.lags_ms, [size, seen.peak, size])


def held(server: Server) -> Row:
    """1,000 connections, half of them in the middle of a request, while small requests are answered."""
    size, row = psutil.Process(server.pid).memory_info().rss, Row()
    small = request_bytes("/embed", b'{"inputs":"a"}')
    began = time.perf_counter()
    with ExitStack() as stack, watched(server) as seen:
        for number in range(1000):
            connection = stack.enter_context(server.connect())
            connection.sendall(small[: -5 if number % 2 else 0])
        for _ in range(20):
            with server.connect() as connection:
                row.statuses[str(ask(connection, small).status_code)] += 1
    row.seconds, row.lags_ms = time.perf_counter() - began, seen.lags_ms
    row.memory = [size, seen.peak, psutil.Process(server.pid).memory_info().rss]
    return row


def main() -> None:
    """Runs the attacks, then the faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    ends_at, random_ = time.monotonic() + options.seconds, random.Random(options.seed)
    facts = {"date": time.strftime("%Y-%m-%d"), "cpus": psutil.cpu_count(), "load": psutil.getloadavg()[0]}
    text = HEAD.format(seed=options.seed, seconds=options.seconds, **facts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(folder / "server", folder / "cache") as server:
            text += quiet(server, 2.0).line("none") + held(server).line("1,000 connections held, 20 small requests")
            rows = {attack.name: Row() for attack in ATTACKS}
            is_first = True
            while is_first or time.monotonic() < ends_at - 30:
                for attack in random_.sample(ATTACKS, len(ATTACKS)):
                    if is_first or time.monotonic() < ends_at - 30:
                        send(server, attack, rows[attack.name])
                        print(rows[attack.name].line(attack.name), end="", flush=True)
                is_first = False
            text += "".join(row.line(name) for name, row in rows.items())
        with FaultyServer(folder / "faulty", folder / "cache", options.seed) as server:
            began, count = time.monotonic(), 200 if options.seconds < 300 else 2000
            statuses = bombard(server, options.seed, count)
        text += f"\nFaults in the engine, the tokenizer, the disk and the clock, {count} requests in "
        text += f"{time.monotonic() - began:.0f} s: " + ", ".join(f"{n} x {s}" for s, n in sorted(statuses.items()))
        text += "; no wrong vector, no request without an end.\n"
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
