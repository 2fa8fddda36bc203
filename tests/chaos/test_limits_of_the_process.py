"""What a server uses of the machine: files, ports, sockets, and time to end."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.chaos.test_signals import refuses
from tests.e2e.server import LONG, TEXTS, Server, ask, cache_of, log_shown, openai_request, wait_until
from tests.fakes import SAFETY_S

# Runs a command whose output is in the log up to the line that names the port; a pipe takes the rest, and is not read.
UNREAD = ("bash", "-c", 'exec "$@" > >(sed -u "/listening on/q"; exec tail --pid=$$ -f /dev/null) 2>&1', "bash")

PROBES = ["/health", "/health/live", "/health/ready", "/ping", "/metrics"]


def test_health_is_known_and_requests_are_answered_when_clients_hold_every_file(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    few_files = ("bash", "-c", 'ulimit -n 256 && exec "$@"', "bash")
    limited = Server(tmp_path / "server", cache_of(tmp_path_factory), few_files, health_port=0)
    with limited as server, log_shown(server), ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(400)]
        with httpx.Client(base_url=server.health_url, timeout=SAFETY_S, verify=False) as probe:
            assert [probe.get(path).status_code for path in PROBES] == [200] * len(PROBES)
        assert ask(stack.enter_context(server.connect()), openai_request(TEXTS[:3])).status_code == 200
        assert ask(held[-1], openai_request(TEXTS[:3])).status_code == 200
        assert server.log.count("ulimit -n") == 1


def test_the_port_for_health_serves_nothing_else(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        Server(tmp_path / "server", cache_of(tmp_path_factory), health_port=0) as server,
        httpx.Client(base_url=server.health_url, timeout=SAFETY_S, verify=False) as probe,
    ):
        assert probe.post("/embed", json={"inputs": "a"}).status_code == 404
        assert probe.get("/info").status_code == 404
        assert probe.get("/health").status_code == 200


def test_a_log_that_is_not_read_stops_neither_requests_nor_the_end(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A reader that had stopped, such as a log driver or a pager, stopped the event loop once its pipe was full."""
    stuck = Server(
        tmp_path / "server", cache_of(tmp_path_factory), UNREAD, access_log="true", drain_timeout_s=SAFETY_S / 4
    )
    with stuck as server, server.client() as client:
        for _ in range(20):  # 160 kB; a pipe has 64 kB
            assert client.get("/" + "a" * 8000).status_code == 404
        assert client.get("/health").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_no_request_needs_a_new_thread(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Under a limit of threads that was reached after the start, long texts got 424, and all others 422 for ever."""
    with Server(tmp_path / "server", cache_of(tmp_path_factory)) as server, log_shown(server):
        before = psutil.Process(server.pid).num_threads()
        for body in ({"inputs": "a"}, {"inputs": [LONG] * 32}, {"inputs": ["a"] * 500, "x": "x" * 200_000}):
            assert server.post("/embed", body).status_code == 200
        assert psutil.Process(server.pid).num_threads() == before


@pytest.mark.parametrize("path", [pytest.param("/openapi.json", marks=pytest.mark.long), "/v1/embeddings"])
def test_clients_that_read_nothing_do_not_outlast_the_drain(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    """Some of the clients have sent many requests at once."""
    request = f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode()
    if path.startswith("/v1"):
        request = openai_request(["a"] * 64)
    with (
        Server(tmp_path / "server", cache_of(tmp_path_factory), drain_timeout_s=4.0) as server,
        log_shown(server),
        ExitStack() as stack,
    ):
        for _ in range(4):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                connection.sendall(request * 2000)
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_a_second_signal_ends_it_at_once(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    patient = Server(tmp_path / "server", cache_of(tmp_path_factory), drain_timeout_s=1000.0)
    with patient as server, server.connect() as connection:
        connection.sendall(openai_request(TEXTS)[:-1])
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server))
        server.send_signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM


def test_a_port_in_use_is_an_error_before_the_model_is_loaded(tmp_path: Path) -> None:
    """The model is not loaded first: in this test it does not exist."""
    program = str(Path(sys.executable).with_name("bei"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [program, "serve", "--model-id", str(tmp_path), "--hostname", "127.0.0.1", "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SAFETY_S, check=False)
    assert ended.returncode == 78
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: 127.0.0.1:{port} is in use by another process; stop it, or choose another port"
    ]
    assert "Traceback" not in ended.stderr


def test_a_unix_socket_is_served_and_taken_over_when_stale(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with Server(tmp_path / "server", cache_of(tmp_path_factory), uds_path=path) as server:
        transport = httpx.HTTPTransport(uds=str(path), verify=False)
        with httpx.Client(transport=transport, base_url="http://a", timeout=SAFETY_S) as client:
            assert client.post("/embed", json={"inputs": "a"}).status_code == 200
        with server.connect() as connection:
            connection.sendall(openai_request(TEXTS)[:-1])
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: not path.exists())
            assert server.is_running, "it drains, and the next server may have the path"
            path.touch()
        assert server.wait() == 0
    assert path.exists()
