"""The harness of `make chaos`: what a probe or a client of it misses is a broken row."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.chaos.attacks import is_answered
from benchmarks.chaos.probe import running, watched
from benchmarks.chaos.table import Row, save, with_errors


def test_what_a_client_on_a_thread_raises_ends_the_block() -> None:
    def client(done: threading.Event) -> None:
        raise ConnectionResetError("by the server")

    with pytest.raises(ConnectionResetError, match="by the server"), running(client):
        pass


def test_the_error_of_the_block_comes_before_that_of_the_client() -> None:
    def client(done: threading.Event) -> None:
        done.wait()
        raise ConnectionResetError("by the server")

    with pytest.raises(KeyError), running(client):
        raise KeyError("of the block")


def test_a_server_that_does_not_answer_the_probe_is_a_broken_row(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server: Any = SimpleNamespace(pid=os.getpid(), connect=lambda: socket.create_connection(listener.getsockname()))

        def measure() -> Row:
            with watched(server):
                connection, _ = listener.accept()
                connection.recv(1)
                connection.close()
            return Row(name="attack", must="", measured="", holds=True)

        row = with_errors("attack", measure)
    assert (row.name, row.holds, row.is_broken) == ("attack", False, True)
    assert "connection" in row.measured.lower()
    save(tmp_path / "chaos.md", [row], ["attack"])
    assert "0 of 1 rows hold" in (tmp_path / "chaos.md").read_text()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({429: 100}, True),
        ({200: 2, 429: 73, 0: 25}, True),
        ({429: 74, 0: 26}, False),
        ({429: 1, 0: 99}, False),
        ({200: 100}, False),
        ({429: 99, 500: 1}, False),
    ],
)
def test_of_a_crowd_at_most_a_quarter_has_no_reply(counts: dict[int, int], expected: bool) -> None:
    assert is_answered(Counter(counts), {200, 429}) is expected
