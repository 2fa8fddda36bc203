"""The load generator: a separate process that needs little CPU, so that it can share two cores with the server.

All requests are encoded before the clock starts. Replies are parsed as HTTP (httptools), but their bodies are not
decoded. So a request costs a write, a read and a list entry; the report has this cost too (`cpu_s`).

Closed loop: each of `connections` clients sends its next request when the previous one is answered. Open loop (`rate`
> 0): requests arrive as a seeded Poisson process, and latency counts from the arrival even if no connection is free.
Otherwise a server that stalls would get fewer requests and look better (coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import httptools
import msgspec

from bei_core.bench.pace import Pacer, arrivals
from bei_core.errors import BeiError

_PACKAGES = str(Path(__file__).parents[2])
_READY, _GO = b"ready\n", b"go\n"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and where. `requests` are whole HTTP requests; the first `warmup` are not measured."""

    host: str
    port: int
    requests: list[bytes]
    warmup: int = 0
    connections: int = 1
    rate: float = 0.0  # requests per second in the open loop; 0 is the closed loop
    seed: int = 0
    timeout_s: float = 60.0
    tls: bool = False
    cpus: list[int] = []  # CPU affinity of the load generator; empty: any CPU


class Outcome(msgspec.Struct, kw_only=True):
    """The results of the measured requests; each request is either in `latencies_ms` or in `errors`."""

    latencies_ms: list[float] = []
    lags_ms: list[float] = []  # open loop: from the arrival until the request was written
    errors: dict[str, int] = {}  # by status, or `timeout`, `disconnected`, `connect`, `protocol`
    num_tokens: int = 0
    num_bytes: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0  # CPU time of the load generator, all threads


class LoadError(BeiError):
    """The load generator itself failed; the message is its stderr."""


def drive(load: Load, at_start: Callable[[], object] = lambda: None) -> Outcome:
    """Send `load` from a subprocess and return the results; `at_start` runs between the warm-up and the measurement."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([_PACKAGES, *filter(None, sys.path)])}
    command = [sys.executable, "-c", "from bei_core.bench.client import main; main()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env) as child:  # noqa: S603, ours
        try:
            return _run_child(child, load, at_start)
        except BrokenPipeError:
            with suppress(BrokenPipeError):  # the `with` above would send the rest once more
                child.stdin.close()  # type: ignore[union-attr]  # a pipe
            raise _failure(child) from None
        finally:
            child.kill()  # has no effect on a child that has ended


def _run_child(child: subprocess.Popen[bytes], load: Load, at_start: Callable[[], object]) -> Outcome:
    """Returns the child's outcome. Raises LoadError if the child ends without one."""
    if child.stdin is None or child.stdout is None:
        raise LoadError("no pipe to the load generator")
    body = msgspec.msgpack.encode(load)
    child.stdin.write(len(body).to_bytes(8, "little") + body)
    child.stdin.flush()
    if child.stdout.readline() != _READY:
        raise _failure(child)
    at_start()
    child.stdin.write(_GO)
    child.stdin.flush()
    answer = child.stdout.read()
    if child.wait() != 0:
        raise _failure(child)
    try:
        return msgspec.msgpack.decode(answer, type=Outcome)
    except msgspec.DecodeError as fault:
        raise _failure(child, f" and {len(answer)} bytes that are no outcome ({fault})") from None


def _failure(child: subprocess.Popen[bytes], answer: str = "") -> LoadError:
    """Returns an error with the child's exit status and stderr, after the child has ended."""
    message = child.stderr.read().decode(errors="replace").strip() if child.stderr else ""
    return LoadError(f"the load generator ended with exit status {child.wait()}{answer}: {message or 'no message'}")


class _Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._num_tokens = -1
        self.busy = False
        self.since = 0.0  # arrival of the request, from which its latency counts
        self.sent = 0.0

    @property
    def alive(self) -> bool:
        """Whether a request can be sent on this connection."""
        return self._transport is not None

    def send(self, request: bytes, since: float) -> None:
        """Write a request that arrived at `since`."""
        if self._transport is None:
            raise ConnectionError("the connection is closed")
        self.busy, self.since, self.sent = True, since, time.perf_counter()
        self._num_tokens = -1
        self._transport.write(request)

    def abort(self, error: str) -> None:
        """Close the connection. A request in progress counts as `error`."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        if self.busy:
            self.busy = False
            self._driver.failed(self, error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport  # type: ignore[assignment]  # a stream transport, as TCP's always is

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._transport = None
        self.abort("disconnected")

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort("protocol")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the HTTP parser."""
        if len(name) == 16 and name.lower() == b"x-compute-tokens":
            self._num_tokens = int(value)

    def on_body(self, body: bytes) -> None:
        """Called by the HTTP parser."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Called by the HTTP parser."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.busy = False
        if not self._parser.should_keep_alive():
            self.abort("closed by the server")
        tokens = self._num_tokens if self._num_tokens >= 0 else tokens_of(body)
        self._driver.answered(self, self._parser.get_status_code(), len(body), tokens)


def tokens_of(body: bytes) -> int:
    """Returns `usage.prompt_tokens` of a JSON reply without parsing the reply; 0 if there is none."""
    at = body.rfind(b'"prompt_tokens":')
    if at < 0:
        return 0
    digits = body[at + 16 : at + 40].lstrip().split(b",", 1)[0].split(b"}", 1)[0]
    return int(digits) if digits.strip().isdigit() else 0


class _Driver:
    """Sends requests over at most `connections` connections, which stay open between two calls of `play`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Connection | None] = [None] * load.connections  # None: not opened yet, or lost
        self._busy: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._due: deque[float] = deque()  # arrivals that wait for a free connection; 0.0: the time of sending

    async def play(self, requests: list[bytes], rate: float) -> Outcome:
        """Send all `requests`; returns when each of them is answered or has failed."""
        self._requests, self._next, self._left = requests, 0, len(requests)
        self._outcome, self._errors = Outcome(), Counter[str]()
        self._done = self._loop.create_future()
        if not requests:
            return self._outcome
        watch = self._loop.create_task(self._watch())
        cpu, start = time.process_time(), time.perf_counter()
        self._schedule(start, rate)
        await self._done
        self._outcome.wall_s, self._outcome.cpu_s = time.perf_counter() - start, time.process_time() - cpu
        self._outcome.errors = dict(self._errors)
        watch.cancel()
        return self._outcome

    def _schedule(self, start: float, rate: float) -> None:
        if rate > 0:
            Pacer([start + at for at in arrivals(rate, self._left, self._load.seed)], self._arrive)
        else:
            self._arrive([0.0] * self._left)

    def _arrive(self, times: Sequence[float]) -> None:
        self._due.extend(times)
        while self._due and self._idle:
            self._start(self._idle.pop())

    def _start(self, connection: _Connection | None) -> None:
        """Send the next request on `connection`, or on a new one if it is closed."""
        since = self._due.popleft() or time.perf_counter()
        request = self._requests[self._next]
        self._next += 1
        if connection is not None and connection.alive:
            self._send(connection, request, since)
        else:
            task = self._loop.create_task(self._open(request, since))
            self._opening.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._opening.discard)

    def _send(self, connection: _Connection, request: bytes, since: float) -> None:
        self._busy.add(connection)
        connection.send(request, since)
        self._outcome.lags_ms.append((connection.sent - since) * 1e3)

    async def _open(self, request: bytes, since: float) -> None:
        load = self._load
        opening = self._loop.create_connection(lambda: _Connection(self), load.host, load.port, ssl=load.tls or None)
        try:
            _, connection = await asyncio.wait_for(opening, load.timeout_s)
            self._send(connection, request, since)
        except (OSError, asyncio.TimeoutError):  # asyncio.TimeoutError is an OSError from Python 3.11 on
            self.failed(None, "connect")

    def answered(self, connection: _Connection, status: int, num_bytes: int, num_tokens: int) -> None:
        """Count a reply, and send the next request on its connection."""
        if status == 200:
            self._outcome.latencies_ms.append((time.perf_counter() - connection.since) * 1e3)
            self._outcome.num_bytes += num_bytes
            self._outcome.num_tokens += num_tokens
        else:
            self._errors[str(status)] += 1
        self._busy.discard(connection)
        self._settled(connection)

    def failed(self, connection: _Connection | None, error: str) -> None:
        """Count a request without a reply. Its connection, if it had one, is closed."""
        if connection is not None:
            self._busy.discard(connection)
        self._errors[error] += 1
        self._settled(None)

    def _settled(self, connection: _Connection | None) -> None:
        self._left -= 1
        if self._due:
            self._start(connection)
        else:
            self._idle.append(connection)
        if not self._left:
            self._done.set_result(None)

    async def _watch(self) -> None:
        """Abort requests without a reply after `timeout_s`, so that a server that hangs causes errors."""
        while True:
            await asyncio.sleep(min(1.0, self._load.timeout_s / 4))
            limit = time.perf_counter() - self._load.timeout_s
            for connection in [c for c in self._busy if c.sent < limit]:
                connection.abort("timeout")


async def _play(load: Load, go: Callable[[], object]) -> Outcome:
    """Send the warm-up, call `go`, then send the measured requests; returns their outcome."""
    driver = _Driver(load)
    await driver.play(load.requests[: load.warmup], rate=0.0)
    go()
    gc.collect()
    gc.disable()  # a garbage collection would be measured as latency of the server
    return await driver.play(load.requests[load.warmup :], load.rate)


def main() -> None:
    """The subprocess: read a Load from stdin, write `ready`, wait for `go`, write an Outcome to stdout."""
    size = int.from_bytes(sys.stdin.buffer.read(8), "little")
    load = msgspec.msgpack.decode(sys.stdin.buffer.read(size), type=Load)
    if load.cpus:
        os.sched_setaffinity(0, load.cpus)

    with open(sys.stdout.fileno(), "wb", closefd=False) as output:  # sys.stdout may be unbuffered and write only a part

        def go() -> None:
            output.write(_READY)
            output.flush()
            sys.stdin.buffer.readline()

        output.write(msgspec.msgpack.encode(_run(load, go)))


def _run(load: Load, go: Callable[[], object]) -> Outcome:
    """Returns the outcome of `_play`, which runs on uvloop if it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_play(load, go))
    return uvloop.run(_play(load, go))
