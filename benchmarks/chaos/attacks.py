"""Requests that cost a client little: each has to get its status, and the event loop must not stand still."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path

import psutil

from bei_core.http.server.sockets import raise_file_limit
from benchmarks.chaos.probe import HEALTH, LIVE, watched
from benchmarks.chaos.table import Row
from tests.chaos.attacks import ATTACKS, GZIP, Attack
from tests.chaos.faulty import SEAMS
from tests.chaos.test_engine_faults import PREFIX
from tests.chaos.test_faults import FaultyServer, bombard
from tests.e2e.server import LONG, Server, ask, openai_request, read_reply, request_bytes
from tests.fakes import SAFETY_S

MAX_STALL_MS = 50.0
MAX_HEALTH_MS = 100.0
_PATIENCE_S = 300.0  # for a reply; what the engine needs for 260,000 tokens on a slow machine
_MAX_LEFT_MB = 100.0  # memory that a request may leave behind: graphs of the engine, and what the allocator keeps
_MAX_CROWD_MB = 620.0  # max_body_bytes_in_flight, and some more for what does not count in it
_MAX_INFLATED_MB = 1074.0  # twice that: the heaps keep the pieces of refused bodies for a second
_RETURNED_S = 3.0  # after which the memory of the attack before is returned
_MAX_CRASH_S = 5.0
_NUM_CONNECTIONS = 2400
QUIET = "no attack, for comparison"
HELD = f"{_NUM_CONNECTIONS} connections held, half of them inside a request"
LARGE = "4 requests of 1,024 long texts"
BODIES = "100 bodies of 31.9 MB that never end"
INFLATED = "60 requests at a time of 30 kB of gzip that are 31 MB"
CRASH = "the engine thread ends while requests wait"
FAULTS = "faults of a seed in the engine, the tokenizer, the disk and the clock"


def quiet(server: Server) -> Row:
    """The server without an attack."""
    with watched(server) as seen:
        time.sleep(5.0)
    slowest = seen.delay_ms(1.0)
    return Row(
        name=QUIET,
        must=f"slowest `/health/live` <= {MAX_STALL_MS:g} ms",
        measured=f"{slowest:.0f} ms, median {seen.delay_ms(0.5):.1f} ms",
        holds=slowest <= MAX_STALL_MS,
    )


def fill(server: Server) -> None:
    """Lets the engine have all its working memory, which it keeps, before what an attack leaves behind is measured."""
    with server.connect() as connection:
        for text in (LONG, "a " * 600):
            ask(connection, openai_request([f"{number} {text}" for number in range(256)]))


def send(server: Server, attack: Attack) -> Row:
    """Sends one request."""
    request = request_bytes(attack.path, attack.body(), *attack.headers)  # made first: it would delay the probe
    process = psutil.Process(server.pid)
    before, reply = process.memory_info().rss, None
    with server.connect() as connection, watched(server) as seen:
        connection.settimeout(_PATIENCE_S)
        began = time.perf_counter()
        with suppress(OSError, AssertionError):  # `read_reply` asserts that a reply is whole
            connection.sendall(request)
            reply = read_reply(connection)
        seconds = time.perf_counter() - began
    time.sleep(1.5)  # memory is returned a second after the end
    status = "no reply" if reply is None else str(reply.status_code)
    is_right = reply is not None and reply.status_code in attack.statuses and attack.limit in reply.text
    slowest = seen.delay_ms(1.0)
    memory = ", ".join(f"{size / 1e6:.0f}" for size in (before, seen.peak, process.memory_info().rss))
    growth_mb, left_mb = (seen.peak - before) / 1e6, (process.memory_info().rss - before) / 1e6
    return Row(
        name=attack.name,
        must=f"{' or '.join(map(str, attack.statuses))}; slowest `/health/live` <= {MAX_STALL_MS:g} ms; "
        f"memory grows by at most {attack.max_growth_mb} MB, and {_MAX_LEFT_MB:g} MB are left",
        measured=f"{status} in {seconds:.2f} s; {slowest:.0f} ms; memory before, peak, after {memory} MB",
        holds=is_right and slowest <= MAX_STALL_MS and growth_mb <= attack.max_growth_mb and left_mb <= _MAX_LEFT_MB,
        is_broken=not is_right,
    )


def bodies(server: Server) -> Row:
    """Bodies of which the last byte does not come."""
    head = b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 31900000\r\n\r\n"
    return _crowd(server, BODIES, head + b" " * 31_899_999, 100, {429}, _MAX_CROWD_MB)


def inflated(server: Server) -> Row:
    """Small bodies that become large ones, as many at a time as wait for the event loop."""
    body = gzip.compress(json.dumps({"inputs": ["a" * 3_900_000] * 8}).encode(), 9)
    return _crowd(server, INFLATED, request_bytes("/embed", body, *GZIP), 60, {200, 429}, _MAX_INFLATED_MB)


def _crowd(server: Server, name: str, request: bytes, num_clients: int, statuses: set[int], max_mb: float) -> Row:
    """The same request on many connections at once, and small ones meanwhile. A quarter may have no reply."""
    time.sleep(_RETURNED_S)
    before = psutil.Process(server.pid).memory_info().rss
    with ProcessPoolExecutor(1, get_context("spawn")) as process:  # on threads of this one they would delay the probe
        process.submit(_replies, server.port, LIVE, 1).result()  # it has imported this module
        with watched(server) as seen:
            replies = process.submit(_replies, server.port, request, num_clients)
            small = {server.post("/embed", {"inputs": "a"}).status_code for _ in range(20)}
            counts = replies.result()
    slowest, growth_mb = seen.delay_ms(1.0), (seen.peak - before) / 1e6
    is_right = is_answered(counts, statuses) and small == {200}
    listed = ", ".join(f"{count} x {status or 'no reply'}" for status, count in sorted(counts.items()))
    return Row(
        name=name,
        must="429 beyond max_body_bytes_in_flight; at most a quarter has no reply, cut off or because its body has not "
        f"ended; memory grows by at most {max_mb:g} MB; 20 of 20 small requests get 200; slowest `/health/live` "
        f"<= {MAX_STALL_MS:g} ms",
        measured=f"{listed}; {growth_mb:.0f} MB; small requests {', '.join(map(str, sorted(small)))}; {slowest:.0f} ms",
        holds=is_right and growth_mb <= max_mb and slowest <= MAX_STALL_MS,
        is_broken=not is_right,
    )


def _replies(port: int, request: bytes, num_clients: int) -> Counter[int]:
    """How many clients get which status, each with a connection of its own at the same time; 0 is no reply."""

    def client(_: int) -> int:
        with socket.create_connection(("127.0.0.1", port), SAFETY_S) as connection, suppress(OSError, AssertionError):
            with suppress(BrokenPipeError, ConnectionResetError):  # there may be a reply all the same
                connection.sendall(request)
            connection.settimeout(20.0)
            reply = read_reply(connection)
            return reply.status_code if reply is not None else 0
        return 0

    with ThreadPoolExecutor(num_clients) as pool:
        return Counter(pool.map(client, range(num_clients)))


def is_answered(counts: Counter[int], statuses: set[int]) -> bool:
    """Whether replies have these statuses, some of them 429, and at most a quarter of the clients has none (0)."""
    return set(counts) <= {*statuses, 0} and counts[429] > 0 and 4 * counts[0] <= counts.total()


def crash(folder: Path) -> Row:
    """SystemExit in the engine's thread."""
    waiting, killing = openai_request([LONG] * 64), request_bytes("/embed", b'{"inputs":[[666]]}', "x-priority: high")
    server = Server(folder / "crashing", folder / "cache", PREFIX, max_queue_wait_s=1000)
    with server, ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(5)]
        for connection in connections:
            connection.sendall(killing if connection is connections[-1] else waiting)
        replies = [read_reply(connection) for connection in connections]
        began = time.perf_counter()
        status, seconds = server.wait(), time.perf_counter() - began
    statuses = sorted(reply.status_code if reply is not None else 0 for reply in replies)
    is_right = status == 1 and set(statuses) <= {200, 424, 503} and 424 in statuses
    return Row(
        name=CRASH,
        must=f"every request is answered; status 1 at most {_MAX_CRASH_S:g} s later",
        measured=f"{', '.join(map(str, statuses))}; status {status} after {seconds:.1f} s",
        holds=is_right and seconds <= _MAX_CRASH_S,
        is_broken=not is_right,
    )


def hold(server: Server) -> Row:
    """Many connections, half of them in the middle of a request, while small requests are answered."""
    raise_file_limit()
    small, statuses = request_bytes("/embed", b'{"inputs":"a"}'), set[int]()
    with ExitStack() as stack, watched(server) as seen:
        for number in range(_NUM_CONNECTIONS):
            connection = stack.enter_context(server.connect())
            connection.sendall(small[: -5 if number % 2 else 0])
        for _ in range(20):
            with server.connect() as connection:
                statuses.add(ask(connection, small).status_code)
    slowest = seen.delay_ms(1.0)
    return Row(
        name=HELD,
        must=f"20 of 20 small requests get 200; slowest `/health/live` <= {MAX_STALL_MS:g} ms",
        measured=f"{', '.join(map(str, sorted(statuses)))}; {slowest:.0f} ms",
        holds=statuses == {200} and slowest <= MAX_STALL_MS,
        is_broken=statuses != {200},
    )


def large(server: Server) -> Row:
    """Requests that fill the queue; health is asked for, and a small urgent request with a deadline."""
    urgent = request_bytes("/embed", b'{"inputs":"a"}', "x-priority: high", "request-timeout-ms: 2000")
    with ExitStack() as stack, watched(server, HEALTH) as seen:
        for _ in range(4):
            stack.enter_context(server.connect()).sendall(openai_request([LONG] * 1024))
        time.sleep(5.0)
        began = time.perf_counter()
        with server.connect() as connection:
            status = ask(connection, urgent).status_code
        seconds = time.perf_counter() - began
        time.sleep(5.0)
    p99 = seen.delay_ms(0.99)
    return Row(
        name=LARGE,
        must=f"p99 of `/health` <= {MAX_HEALTH_MS:g} ms; a small urgent request with a deadline of 2 s gets 200",
        measured=f"{p99:.1f} ms, slowest {seen.delay_ms(1.0):.0f} ms; {status} in {seconds:.2f} s",
        holds=p99 <= MAX_HEALTH_MS and status == 200 and seen.statuses == {200},
        is_broken=seen.statuses != {200},
    )


def faults(folder: Path, seed: int, num_requests: int) -> Row:
    """Faults at the seams of a server; `bombard` compares each vector with the reference."""
    server = FaultyServer(folder / "faulty", folder / "cache", seed)
    with server:
        statuses = bombard(server, seed, num_requests)
        is_running, untouched = server.is_running, set(SEAMS) - server.seams
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    is_right = is_running and not untouched
    return Row(
        name=FAULTS,
        must="every request ends once, in a right vector or an error of its route; the process lives",
        measured=f"seed {seed}: {counts}; no wrong vector; seams without a fault: {', '.join(untouched) or 'none'}",
        holds=is_right,
        is_broken=not is_right,
    )


ORDER = (QUIET, *(attack.name for attack in ATTACKS), BODIES, INFLATED, HELD, LARGE)
QUICK = (*(attack.name for attack in ATTACKS), HELD, FAULTS)
