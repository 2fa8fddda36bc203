"""Injected faults, from a seed: each request ends once, with a right vector or an error in the route's format."""

from __future__ import annotations

import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.server import REFERENCE, TEXTS, Server, cache_of, log_shown, vectors, wait_until
from tests.golden.tolerance import compare

ROOT = Path(__file__).resolve().parents[2]


class FaultyServer(Server):
    """`bei serve` with the faults of a seed."""

    def __init__(self, folder: Path, cache_dir: Path, seed: int) -> None:
        super().__init__(folder, cache_dir, ("env", f"PYTHONPATH={ROOT / 'packages'}:{ROOT}"), dtype="float32")
        self.program = (sys.executable, "-m", "tests.chaos.faulty", str(seed))


def bombard(server: Server, seed: int, num_requests: int) -> Counter[int]:
    """The number of replies by status. Raises AssertionError for a wrong vector or an error in a wrong format."""

    def ask(number: int) -> int:
        rows = random.Random(f"{seed} {number}").sample(range(len(TEXTS)), 2)
        reply = server.post("/v1/embeddings", {"input": [TEXTS[row] for row in rows]})
        if reply.status_code == 200:
            compare(vectors(reply.json()), REFERENCE.vectors[rows], server.tolerance())
        else:
            assert reply.json()["error"]["type"] in {"Backend", "Tokenizer"}, reply.text
        return reply.status_code

    with ThreadPoolExecutor(4) as pool:
        return Counter(pool.map(ask, range(num_requests)))


@pytest.mark.parametrize(("seed", "num_requests"), [(1, 60), pytest.param(1, 150, marks=pytest.mark.long)])
def test_every_request_ends_once_and_rightly(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, num_requests: int
) -> None:
    with FaultyServer(tmp_path / "server", cache_of(tmp_path_factory), seed) as server, log_shown(server):
        statuses = bombard(server, seed, num_requests)
        assert set(statuses) <= {200, 422, 424}
        assert statuses[200] > num_requests / 2
        assert statuses[422]
        wait_until(lambda: server.metrics()["te_queue_size"] == 0)
        failures = server.metrics()["te_request_failure"]
        assert failures == statuses[422] + statuses[424]
        assert server.is_running
        assert server.get("/health").status_code == 200
