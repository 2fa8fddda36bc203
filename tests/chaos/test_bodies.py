"""Bodies that are cheap to send: a body over a limit is refused with the limit's name, and takes no memory."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.chaos.attacks import ATTACKS, GZIP, Attack
from tests.e2e.server import Server, ask, cache_of, log_shown, request_bytes

REFUSED = [attack for attack in ATTACKS if 200 not in attack.statuses]
MAX_GROWTH = 200_000_000  # bytes; the body itself and twice the places of its commas

BUDGET = 128_000_000  # bytes of all bodies


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


@pytest.mark.parametrize(
    ("count", "text", "status"),
    [
        (1, "a" * 31_900_000, 413),
        (4, "a" * 3_900_000 + "😀", 200),
        pytest.param(8, "a" * 3_900_000, 200, marks=pytest.mark.long),
    ],
    ids=["refused", "wide", "computed"],
)
def test_many_small_bodies_that_become_large_stay_within_the_budget(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, count: int, text: str, status: int
) -> None:
    """60 requests at once of 30 kB, which are 1.9 GB once decompressed: few of them are, and the others get 429.

    A body is in memory twice while its parts are joined, and while its texts are made. One emoji in a text makes it
    four times as large as its bytes.
    """
    content = json.dumps({"inputs": [text] * count}, ensure_ascii=False).encode()
    request = request_bytes("/embed", gzip.compress(content, 9), *GZIP)
    assert len(request) < 35_000
    limited = Server(tmp_path / "server", cache_of(tmp_path_factory), max_body_bytes_in_flight=BUDGET)

    def send(_: int) -> int:
        with limited.connect() as connection:
            return ask(connection, request).status_code

    with limited as server, log_shown(server), ThreadPoolExecutor(60) as pool:
        before = peak = psutil.Process(server.pid).memory_info().rss
        replies = [pool.submit(send, number) for number in range(60)]
        while not all(reply.done() for reply in replies):
            time.sleep(0.005)
            peak = max(peak, psutil.Process(server.pid).memory_info().rss)
        assert {reply.result() for reply in replies} == {429, status}
        assert peak - before < 3 * BUDGET
        assert server.post("/embed", {"inputs": "a"}).status_code == 200


def test_memory_of_a_large_request_is_given_back(server: Server) -> None:
    """Before a limit and a trim of memory, 512 texts of 62,000 characters took 4 GB and left 3.6 GB allocated."""
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    with log_shown(server), server.connect() as connection:
        body = b'{"inputs":[' + b",".join([b'"' + b"!" * 62_000 + b'"'] * 8) + b"]}"
        assert ask(connection, request_bytes("/embed", body)).status_code == 200
    assert process.memory_info().rss - before < MAX_GROWTH
