"""What an overloaded server does with clients that open a connection for each request."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest

from bei_core.http.server import arrivals
from bei_core.http.server import pool as pool_module
from bei_core.http.server.connection import Connection
from bei_core.http.server.pool import Pool
from tests.fakes import SAFETY_S, at_rest
from tests.unit.http.overloaded import MakeServed, lined_up, set_rate

REQUEST = b"POST /embed HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"


async def refused(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    assert (await asyncio.wait_for(reader.read(), SAFETY_S)).startswith(b"HTTP/1.1 429 ")
    writer.close()


async def test_those_that_come_while_the_event_loop_rests_are_refused_without_a_connection(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await make_served(max_queue_wait_s=4.0, max_batch_tokens=48)
    set_rate(served, 48, 4.0)
    first, waiting = await lined_up(served, 48)
    clients, made = list[socket.socket](), list[Connection]()

    def come(_: float) -> None:
        """What happens while the event loop sleeps."""
        while len(clients) < 5:
            clients.append(socket.create_connection(("127.0.0.1", served.port), SAFETY_S))
            clients[-1].sendall(REQUEST)

    def counted(pool: Pool) -> Connection:
        made.append(Connection(pool))
        return made[-1]

    monkeypatch.setattr(pool_module, "time", SimpleNamespace(sleep=come))
    monkeypatch.setattr(arrivals, "Connection", counted)
    await refused(served.port)
    await at_rest()
    assert len(clients) == 5
    assert len(made) == 1
    for client in clients:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 429 ")
        client.close()
    served.engine.release()
    assert {(await task).status_code for task in (first, waiting)} == {200}


async def test_a_renewal_counts_nothing_in_the_budget_of_retries(make_served: MakeServed) -> None:
    """Only the request itself does, when it is accepted; it was counted twice."""
    served = await make_served(max_queue_wait_s=4.0, max_batch_tokens=48)
    set_rate(served, 48, 4.0)
    first, waiting = await lined_up(served, 48)
    await refused(served.port)
    (refusal,) = served.app._refusals.values()
    served.engine.release()
    assert {(await task).status_code for task in (first, waiting)} == {200}
    served.app._refusals.clear()  # as after their time
    retries = served.service._runner.admission._retries
    retries._left = 5.0
    assert refusal.renew() is None
    assert retries._left == 5.0
