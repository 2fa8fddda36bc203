"""Injected faults, from a seed: each request ends once, with a right vector or an error in the route's format."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faulty import SEAMS
from tests.e2e.server import REFERENCE, TEXTS, Server, cache_of, log_shown, vectors, wait_until
from tests.golden.tolerance import F32, compare

ROOT = Path(__file__).resolve().parents[2]


KEY = "sesame"
NUM_CLIENTS = 4
STATUSES = frozenset({200, 422, 424, 504})
FAR_S = 600.0  # until the deadlines, which only a jump of the clock passes


class FaultyServer(Server):
    """`bei serve` with the faults of a seed."""

    def __init__(self, folder: Path, cache_dir: Path, seed: int) -> None:
        self.keys = folder.with_suffix(".keys")
        self.keys.parent.mkdir(parents=True, exist_ok=True)
        self.keys.write_text(f"client: {{key: {KEY}}}")
        environ = ("env", f"PYTHONPATH={ROOT / 'packages'}:{ROOT}", "BEI_ACCESS_LOG=true")
        super().__init__(folder, cache_dir, environ, dtype="float32", api_keys_file=self.keys)
        self.program = (sys.executable, "-m", "tests.chaos.faulty", str(seed))

    @property
    def seams(self) -> set[str]:
        """The seams that had a fault."""
        return set(re.findall(r"^fault in (\w+)$", self.log, re.MULTILINE))


def bombard(server: FaultyServer, seed: int, num_requests: int) -> Counter[int]:
    """The number of replies by status, of STATUSES. Raises AssertionError for a wrong vector, error or duration."""

    def ask(number: int) -> int:
        random_ = random.Random(f"{seed} {number}")
        rows = random_.sample(range(len(TEXTS)), 2)
        limits = {"request-timeout-ms": FAR_S, "request-deadline-ms": time.time() + FAR_S}
        limit = random_.choice(["", "request-timeout-ms", "request-deadline-ms"])
        headers = {"authorization": f"Bearer {KEY}"} | ({limit: f"{1e3 * limits[limit]:.0f}"} if limit else {})
        os.utime(server.keys)  # so that the server reads it again
        with server.client(**headers) as client:
            reply = client.post("/v1/embeddings", json={"input": [TEXTS[row] for row in rows]})
        if reply.status_code == 200:
            compare(vectors(reply.json()), REFERENCE.vectors[rows], F32)
        else:
            assert reply.status_code in STATUSES, reply.text
            check_error(reply.json()["error"], limit)
        return reply.status_code

    before, began = server.metrics(), time.monotonic()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        statuses = Counter(pool.map(ask, range(num_requests)))
    check_durations(before, server.metrics(), NUM_CLIENTS * (time.monotonic() - began))
    assert "this is a bug" not in server.log
    return statuses


def check_error(error: dict[str, Any], limit: str) -> None:
    """Raises AssertionError for an error that no fault explains. `limit` is the header with the request's deadline."""
    if error["type"] == "DeadlineExceeded":  # never later, because the clock is read once
        assert limit == "request-deadline-ms", error
        assert "passed before it was accepted" in error["message"], error
        return
    assert error["type"] in {"Backend", "Tokenizer"}, error
    assert "internal error" not in error["message"], error


def check_durations(before: dict[str, float], after: dict[str, float], most_s: float) -> None:
    """Raises AssertionError unless the durations in the metrics are times that requests can have taken together."""
    names = [name for name in after if name.startswith("te_request_") and name.endswith("duration_sum")]
    assert len(names) >= 4
    for name in names:
        assert 0 <= after[name] - before.get(name, 0.0) <= most_s, name


@pytest.mark.parametrize(("seed", "num_requests"), [(1, 100), pytest.param(1, 300, marks=pytest.mark.long)])
def test_every_request_ends_once_and_rightly(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, num_requests: int
) -> None:
    server = FaultyServer(tmp_path / "server", cache_of(tmp_path_factory), seed)
    with server, log_shown(server):
        statuses = bombard(server, seed, num_requests)
        assert server.seams == set(SEAMS)
        assert statuses[200] > num_requests / 2
        assert statuses[422]
        assert 0 < statuses[504] < num_requests / 4  # of a third of the requests, those that a jump forward meets
        wait_until(lambda: server.metrics()["te_queue_size"] == 0)
        failures = server.metrics()["te_request_failure"]
        assert failures == num_requests - statuses[200]
        assert server.is_running
        assert server.get("/health").status_code == 200
