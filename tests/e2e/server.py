"""`bei serve` as a process of its own over the real model, and what the tests of it share."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bei_core.tasks import Rows
from tests.conftest import MINILM
from tests.fakes import SAFETY_S
from tests.golden.cases import load_minilm
from tests.golden.tolerance import BF16, F32, Tolerance

REFERENCE = load_minilm()
TEXTS = list(REFERENCE.texts)
WIDTH = 384
MAX_TOKENS = 256
NAME = "all-MiniLM-L6-v2"

SHORT = [index for index, ids in enumerate(REFERENCE.ids) if 2 < len(ids) <= 20]  # of texts that take little time

LONG = "word " * 300  # more tokens than the model takes
SLOW = [LONG] * 16  # more than a tenth of a second of work
ENDLESS = [LONG] * 256  # several seconds of work

_LISTENS = re.compile(r"listening on (?:http://127\.0\.0\.1:(\d+)|unix:)")
_LISTENS_FOR_HEALTH = re.compile(r"health checks and metrics on http://127\.0\.0\.1:(\d+)")

_BUG = re.compile(r"^\S+ \S+ (ERROR|CRITICAL) |^Traceback |^Fatal Python error|^thread '.*' panicked|never awaited")


class Server:
    """The process, ready to answer inside the `with` block and killed at its end at the latest.

    `prefix` is a command that runs the server's command, such as a shell that sets a limit. A setting that is None is
    not given; a tuple is given once for each item.
    """

    program: Sequence[str] = (str(Path(sys.executable).with_name("bei")),)

    def __init__(self, folder: Path, cache_dir: Path, prefix: Sequence[str] = (), /, **settings: object) -> None:
        if not MINILM.is_dir():
            pytest.fail(f"{MINILM} is missing; run `make install`")
        folder.mkdir(parents=True)
        self._folder = folder
        self._prefix = prefix
        defaults = {
            "model_id": MINILM,
            "served_model_name": NAME,
            "cache_dir": cache_dir,
            "hostname": "127.0.0.1",
            "port": 0,
        }
        self._settings = {**defaults, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._tolerance: Tolerance | None = None
        self.port = 0

    def __enter__(self) -> Server:
        given = {name.replace("_", "-"): value for name, value in self._settings.items() if value is not None}
        items = [
            (name, item) for name, value in given.items() for item in (value if isinstance(value, tuple) else (value,))
        ]
        flags = [part for name, item in items for part in (f"--{name}", str(item))]
        environ = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "HF_HUB_OFFLINE": "1"}
        command = [*self._prefix, *self.program, "serve", *flags]
        self._output = (self._folder / "log").open("wb")
        try:
            self._process = subprocess.Popen(command, env=environ, stdout=self._output, stderr=subprocess.STDOUT)
            wait_until(lambda: _LISTENS.search(self.log) is not None or not self.is_running)
            found = _LISTENS.search(self.log)
            assert found, f"the server did not start:\n{self.log}"
            self.port = int(found[1] or 0)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def health_url(self) -> str:
        """The URL for health probes, if the server has a port for them."""
        found = _LISTENS_FOR_HEALTH.search(self.log)
        assert found, "it has no port for health checks"
        return f"http://127.0.0.1:{found[1]}"

    @property
    def log(self) -> str:
        """The output of the server."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._running.poll() is None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self._running.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        return self._running.wait(SAFETY_S)

    def connect(self) -> socket.socket:
        """A new connection, which the caller has to close."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=SAFETY_S)

    def client(self, **headers: str) -> httpx.Client:
        """A client of the server, which the caller has to close."""
        return httpx.Client(base_url=self.url, timeout=SAFETY_S, headers=headers, verify=False)

    def get(self, path: str) -> httpx.Response:
        """The reply to one GET."""
        with self.client() as client:
            return client.get(path)

    def post(self, path: str, body: object) -> httpx.Response:
        """The reply to one POST of JSON."""
        with self.client() as client:
            return client.post(path, json=body)

    def metrics(self) -> dict[str, float]:
        """The samples of `/metrics` by their names, summed over their labels."""
        found: dict[str, float] = {}
        for name, _, value in samples(self.get("/metrics").text):
            found[name] = found.get(name, 0) + value
        return found

    def wait_for_lone_graphs(self) -> None:
        """Sends texts one at a time until the CPU engine has compiled its graphs for them, which take memory.

        On a busy machine its thread would get no processor, so its priority is raised, where the user may do so.
        """
        if "graphs for single texts" in self.log:
            return
        with self.client() as client:
            for _ in range(100):
                client.post("/embed", json={"inputs": "a text"}).raise_for_status()

        def are_compiled() -> bool:
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                with suppress(OSError):
                    os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))
            return "graphs for single texts" in self.log

        wait_until(are_compiled, 10 * SAFETY_S)

    def tolerance(self) -> Tolerance:
        """How close the server's vectors have to be to the reference."""
        if self._tolerance is None:
            self._tolerance = {"f32": F32, "bf16": BF16}[self.get("/info").json()["model_dtype"]]
        return self._tolerance

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise AssertionError("the server has not been started")
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._output is not None:
            self._output.close()


@contextmanager
def log_shown(server: Server) -> Iterator[Server]:
    """The server; pytest shows what it wrote inside the block where the test fails."""
    already = len(server.log)
    try:
        yield server
    finally:
        print(server.log[already:])


@contextmanager
def no_bugs(server: Server) -> Iterator[Server]:
    """As `log_shown`; raises AssertionError if the server logged an error or a traceback inside the block.

    A client cannot see all bugs: the reply to an exception that nothing handles has status 424, which is documented.
    """
    already = len(server.log)
    with log_shown(server):
        yield server
        assert not (found := bugs(server.log[already:])), "\n".join(found)


def bugs(log: str) -> list[str]:
    """The lines of a server's log that say that something is wrong in the server."""
    return [line for line in log.splitlines() if _BUG.search(line)]


def cache_of(factory: pytest.TempPathFactory) -> Path:
    """One cache of built engines for the whole run, which all workers of pytest share."""
    folder = factory.getbasetemp()  # a worker's is in the folder of the run
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "engines-of-e2e"


def wait_until(condition: Callable[[], bool], limit_s: float = SAFETY_S) -> None:
    """Wait until the condition holds. Raises AssertionError if it never does.

    The pauses become longer, because asking takes processor time from what the test waits for.
    """
    limit, pause_s = time.monotonic() + limit_s, 0.005
    while not condition():
        assert time.monotonic() < limit, "what the test waits for never happened"
        time.sleep(pause_s)
        pause_s = min(1.2 * pause_s, 0.05)


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of Prometheus' text format.

    The parser adds `_total` to the names of counters that do not have it, such as TEI's; here they are without.
    """
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    names = [sample.name.removesuffix("_total") if sample.name.startswith("te_") else sample.name for sample in found]
    return [(name, dict(sample.labels), sample.value) for name, sample in zip(names, found, strict=True)]


def vectors(body: dict[str, Any]) -> Rows:
    """f32[N, D] of an OpenAI reply with numbers."""
    return np.array([item["embedding"] for item in body["data"]], np.float32)


def request_bytes(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST request."""
    lines = [f"POST {path} HTTP/1.1", "host: a", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def openai_request(inputs: object) -> bytes:
    """The bytes of a POST request of `/v1/embeddings`."""
    return request_bytes("/v1/embeddings", httpx.Request("POST", "http://a", json={"input": inputs}).content)


def read_reply(connection: socket.socket) -> httpx.Response | None:
    """The next reply; None if the connection ends first. Raises AssertionError if it ends inside the reply.

    What came after it is lost: several replies on their way are read with `reply_of` and one file.
    """
    with connection.makefile("rb") as file:
        return reply_of(file)


def reply_of(file: IO[bytes]) -> httpx.Response | None:
    """As `read_reply`, from a connection's file."""
    try:
        head = file.readline()
    except ConnectionResetError:
        return None
    if not head:
        return None
    lines = []
    while line := file.readline().rstrip(b"\r\n"):
        lines.append(line.partition(b": ")[::2])
    size = int(dict(lines)[b"content-length"])
    content = file.read(size)
    assert len(content) == size, f"cut in the middle, after {head!r} and {len(content)} of {size} bytes"
    return httpx.Response(int(head.split()[1]), headers=lines, content=content)


def ask(connection: socket.socket, request: bytes) -> httpx.Response:
    """The reply to a request, on a connection that stays open."""
    connection.sendall(request)
    reply = read_reply(connection)
    assert reply is not None, "the connection was closed without a reply"
    return reply
