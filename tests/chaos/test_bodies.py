"""Bodies that are cheap to send: a body over a limit is refused with the limit's name, and takes no memory."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from tests.chaos.attacks import ATTACKS, Attack
from tests.e2e.server import Server, ask, cache_of, log_shown, request_bytes

REFUSED = [attack for attack in ATTACKS if 200 not in attack.statuses]
MAX_GROWTH = 200_000_000  # bytes; the body itself and twice the places of its commas


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("bodies") / "server", cache_of(tmp_path_factory)) as server:
        yield server


@pytest.mark.parametrize("attack", REFUSED, ids=[attack.name for attack in REFUSED])
def test_too_much_is_refused_with_its_limit(server: Server, attack: Attack) -> None:
    before = psutil.Process(server.pid).memory_info().rss
    with log_shown(server), server.connect() as connection:
        reply = ask(connection, request_bytes(attack.path, attack.body(), *attack.headers))
        assert reply.status_code in attack.statuses, reply.text
        assert attack.limit in reply.text
        assert psutil.Process(server.pid).memory_info().rss - before < MAX_GROWTH
        assert server.get("/health/live").status_code == 200
        assert "Traceback" not in server.log


def test_memory_of_a_large_request_is_given_back(server: Server) -> None:
    """Before a limit and a trim of memory, 512 texts of 62,000 characters took 4 GB and left 3.6 GB allocated."""
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    with log_shown(server), server.connect() as connection:
        body = b'{"inputs":[' + b",".join([b'"' + b"!" * 62_000 + b'"'] * 8) + b"]}"
        assert ask(connection, request_bytes("/embed", body)).status_code == 200
    assert process.memory_info().rss - before < MAX_GROWTH
