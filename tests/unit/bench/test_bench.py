"""Counts of the load generator, reproducible workloads, arithmetic of the report; no test depends on timing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bei_core.bench import LoadError, Options, Report, plot, run
from bei_core.bench.client import Load, drive, tokens_of
from bei_core.bench.measure import split
from bei_core.bench.observe import Server, parse_counters
from bei_core.bench.pace import arrivals
from bei_core.bench.report import Latency
from bei_core.bench.workload import KINDS, Wire, texts
from bei_core.errors import ConfigError

OK = b'{"data":[],"usage":{"prompt_tokens": 7, "total_tokens": 7}}'
METRICS = b"# HELP x y\nte_batch_next_tokens_sum 30.0\nbei_padding_tokens_total %d\n"

Reply = tuple[int, dict[str, str], bytes]
Behaviour = Callable[[int], Reply | str]  # number of the request, from 0 -> a reply, "hang" or "leave"


def good(_: int) -> Reply:
    return 200, {}, OK


class Fake:
    """An HTTP server on its own thread that replies as `behaviour` says and records the bodies."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.num_connections = 0
        self.num_scrapes = 0
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._talk(reader, writer))
        self._clients.add(task)
        self.num_connections += 1

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                reply = await self._reply(head, reader)
                if isinstance(reply, str):
                    if reply == "hang":
                        await self._stop.wait()
                    return
                writer.write(encode(*reply))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _reply(self, head: bytes, reader: asyncio.StreamReader) -> Reply | str:
        if head.startswith(b"GET /metrics"):
            self.num_scrapes += 1
            return 200, {}, METRICS % (10 * self.num_scrapes)
        if head.startswith(b"GET"):
            return 404, {}, b""
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(length))
        return self.behaviour(len(self.bodies) - 1)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


def encode(status: int, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def serving(behaviour: Behaviour = good) -> Iterator[Fake]:
    fake = Fake(behaviour)
    fake.start()
    try:
        yield fake
    finally:
        fake.stop()


def load(port: int, count: int, **options: object) -> Load:
    wire = Wire(host=f"127.0.0.1:{port}")
    return Load(host="127.0.0.1", port=port, requests=wire.requests(texts("short", count, 0)), **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- client
def test_closed_loop_sends_each_request_once_and_measures_those_after_the_warmup() -> None:
    with serving() as fake:
        outcome = drive(load(fake.port, 48, warmup=8, connections=4))
    assert len(outcome.latencies_ms) == 40
    assert outcome.errors == {}
    assert outcome.num_tokens == 40 * 7
    assert outcome.num_bytes == 40 * len(OK)
    assert sorted(fake.bodies) == sorted(request.split(b"\r\n\r\n", 1)[1] for request in load(0, 48).requests)
    assert fake.num_connections <= 4


def test_the_clock_starts_after_the_warmup() -> None:
    seen = []
    with serving() as fake:
        drive(load(fake.port, 10, warmup=4), lambda: seen.append(len(fake.bodies)))
    assert seen == [4]


def test_open_loop_sends_every_arrival_and_counts_the_wait_for_a_connection() -> None:
    with serving() as fake:
        outcome = drive(load(fake.port, 60, warmup=10, connections=1, rate=5000.0))
    assert len(outcome.latencies_ms) == len(outcome.lags_ms) == 50
    assert fake.num_connections == 1
    pairs = zip(outcome.latencies_ms, outcome.lags_ms, strict=True)  # one connection: both in the same order
    assert all(latency >= lag >= 0 for latency, lag in pairs)


def test_the_token_count_in_the_header_takes_precedence_over_the_body() -> None:
    with serving(lambda n: (200, {"X-Compute-Tokens": "11"}, OK)) as fake:
        assert drive(load(fake.port, 5)).num_tokens == 55


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (OK, 7),
        (b'{"usage":{"prompt_tokens":12}}', 12),
        (b"[[0.1,0.2]]", 0),
        (b'{"prompt_tokens":null}', 0),
        (b"", 0),
    ],
)
def test_the_token_count_is_read_from_the_body(body: bytes, expected: int) -> None:
    assert tokens_of(body) == expected


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ((429, {}, b"later"), "429"),
        ((500, {"Connection": "close"}, b""), "500"),
        ("leave", "disconnected"),
        ("hang", "timeout"),
    ],
)
def test_every_fault_is_counted_and_the_other_requests_succeed(fault: Reply | str, name: str) -> None:
    with serving(lambda n: fault if n % 5 == 0 else good(n)) as fake:
        outcome = drive(load(fake.port, 30, connections=3, timeout_s=1.0 if fault == "hang" else 60.0))
    assert outcome.errors == {name: 6}
    assert len(outcome.latencies_ms) == 24


def test_a_malformed_reply_is_a_protocol_error() -> None:
    with serving(lambda n: (200, {"Content-Length": "x"}, b"")) as fake:
        assert drive(load(fake.port, 3)).errors == {"protocol": 3}


def test_connections_closed_by_the_server_are_reopened() -> None:
    with serving(lambda n: (200, {"Connection": "close"}, OK)) as fake:
        outcome = drive(load(fake.port, 12, connections=2))
    assert len(outcome.latencies_ms) == 12
    assert outcome.errors == {}
    assert fake.num_connections == 12


def test_requests_to_a_closed_port_are_connect_errors() -> None:
    with serving() as fake:
        port = fake.port
    assert drive(load(port, 6, connections=2)).errors == {"connect": 6}


def test_the_error_of_a_failed_load_generator_has_its_message() -> None:
    with pytest.raises(LoadError, match="Invalid argument"):
        drive(load(1, 1, cpus=[1023]))


@pytest.mark.parametrize("reads", [True, False])
def test_a_load_generator_that_ends_without_an_answer_is_an_error(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    script = (
        "import os, sys\nprint('ready', flush=True)\nos.write(2, b'why')\n"
        f"while {reads} and not sys.stdin.buffer.readline().endswith(b'go\\n'): pass\nos.write(1, b'x')"
    )
    children, popen = list[subprocess.Popen[bytes]](), subprocess.Popen

    def start(command: list[str], **flags: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - Popen's
        children.append(popen([*command[:-1], script], **flags))
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    message = r" and 1 bytes that are no outcome \(.*\): why" if reads else ": why"
    with pytest.raises(LoadError, match=f"exit status 0{message}$"):
        drive(load(1, 1), at_start=lambda: reads or children[0].wait())


def test_the_answer_is_whole_if_the_output_is_not_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with PYTHONUNBUFFERED in a container: a write that a signal interrupts writes a part, and says how much."""
    script = (
        "import signal; signal.signal(signal.SIGALRM, lambda *_: None); "
        "signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005); from bei_core.bench import client; "
        "client._run = lambda load, go: go() or client.Outcome(latencies_ms=[1.0] * 500_000); client.main(); "
        "signal.setitimer(signal.ITIMER_REAL, 0)"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **flags: popen([command[0], "-u", "-c", script], **flags))
    assert len(drive(load(1, 1)).latencies_ms) == 500_000


def test_arrivals_depend_only_on_the_seed() -> None:
    first, again, other = (list(arrivals(100.0, 2000, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first)
    assert first[-1] == pytest.approx(20.0, rel=0.1)


# ----------------------------------------------------------------------------------------------------- workload
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_distinct_and_within_their_bounds(kind: str) -> None:
    found = texts(kind, 400, seed=3)
    assert len(found) == len(set(found)) == 400
    assert all(KINDS[kind].shortest <= len(text.split()) <= KINDS[kind].longest for text in found)
    assert found[:100] == texts(kind, 100, seed=3)
    assert found != texts(kind, 400, seed=4)


def test_texts_are_the_same_on_every_version_of_python() -> None:
    joined = "\n".join(text for kind in KINDS for text in texts(kind, 50, seed=0))
    assert hashlib.sha256(joined.encode()).hexdigest()[:16] == "2744d36894fa1b54"


def test_the_error_for_an_unknown_workload_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="short, mixed, long"):
        texts("huge", 1, 0)


def test_a_request_has_all_headers_and_the_texts_of_the_batch() -> None:
    wire = Wire(host="h:1", prefix="/p", batch=2, encoding_format="float", model="m", api_key="k")
    head, body = wire.requests(["a", "b", "c", "ü"])[1].split(b"\r\n\r\n")
    assert head.startswith(b"POST /p/v1/embeddings HTTP/1.1\r\nhost: h:1\r\n")
    assert b"\r\nauthorization: Bearer k" in head
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head
    assert json.loads(body) == {"input": ["c", "ü"], "model": "m", "encoding_format": "float"}


def test_a_request_in_the_shape_of_tei() -> None:
    head, body = Wire(host="h", shape="tei").requests(["a"])[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /embed ")
    assert json.loads(body) == {"inputs": "a", "truncate": True}


@pytest.mark.parametrize("options", [{"shape": "soap"}, {"encoding_format": "xml"}, {"batch": 0}])
def test_impossible_requests_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Wire(host="h", **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- report
def test_percentiles_are_interpolated() -> None:
    found = Latency.of([float(value) for value in range(100, 0, -1)])
    assert found is not None
    assert (found.mean, found.p50, found.max) == (50.5, 50.5, 100.0)
    assert [found.p95, found.p99] == pytest.approx([95.05, 99.01])
    assert Latency.of([]) is None


def test_counters_are_summed_over_labels() -> None:
    text = '# TYPE a counter\na{x="1 }"} 2\na{x="2"} 3 1700000000\nb_sum 1e3\nc NaN\nd oops\n'
    found = parse_counters(text)
    assert found == {"a": 5.0, "b_sum": 1000.0, "c": 0.0}


def test_a_report_has_the_numbers_of_client_and_server(tmp_path: Path) -> None:
    with serving() as fake:
        options = Options(
            url=f"http://127.0.0.1:{fake.port}", workload="short", num_requests=30, warmup=5, clients=3, batch=2,
            api_key="secret", gemm_peak_gflops=1e-3, flops_per_token=2.0, label="fake",
        )  # fmt: skip
        report = run(options)
    assert report.tokens_per_s is not None
    assert report.num_ok == 30
    assert report.texts_per_s == pytest.approx(2 * report.requests_per_s)
    assert report.tokens_per_s == pytest.approx(7 * report.requests_per_s)
    assert report.gemm_share == pytest.approx(report.tokens_per_s * 2 / 1e9 / 1e-3)
    assert report.counters == {"bei_padding_tokens_total": 10.0, "te_batch_next_tokens_sum": 0.0}
    assert report.padding_share == 1.0
    assert report.workload.mean_tokens == 3.5
    assert "short: 30 requests of 2 texts" in str(report)
    report.write(tmp_path / "r.json")
    assert Report.read(tmp_path / "r.json") == report
    assert "secret" not in (tmp_path / "r.json").read_text()


def test_a_report_without_any_answer() -> None:
    with serving(lambda n: (503, {}, b"")) as fake:
        report = run(Options(url=f"http://127.0.0.1:{fake.port}", num_requests=4, warmup=0, rate=1000.0))
    assert (report.num_ok, report.errors, report.latency_ms, report.tokens_per_s) == (0, {"503": 4}, None, None)
    assert "503 4" in str(report)


def test_the_server_is_found_by_its_port() -> None:
    pytest.importorskip("psutil")
    with serving() as fake:
        snapshot = Server(urlsplit(f"http://127.0.0.1:{fake.port}")).snapshot()
    assert snapshot.cpu_s is not None
    assert snapshot.rss_mb is not None


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:port"):
        split(url)


def test_the_default_port_is_added_to_a_url() -> None:
    assert split("http://host/p").netloc == "host:80"
    assert split("https://[::1]").netloc == "[::1]:443"


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_requests"):
        Options(num_requests=0)


@pytest.fixture
def report_file(tmp_path: Path) -> Path:
    with serving() as fake:
        report = run(Options(url=f"http://127.0.0.1:{fake.port}", num_requests=3, warmup=0, clients=1))
    report.write(tmp_path / "r.json")
    return tmp_path / "r.json"


def test_a_plot_is_a_png(report_file: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = plot([report_file, report_file], report_file.with_suffix(".png"))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_error_for_a_plot_without_matplotlib_has_the_install_command(
    report_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'bei-core\[bench\]'"):
        plot([report_file], report_file.with_suffix(".png"))


def test_the_error_for_a_file_that_is_no_report_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"r\.json"):
        Report.read(tmp_path / "r.json")
