"""A server whose disk is full: it starts and answers, and loses lines of its log and what saves it work later."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np

from bei_core.config.settings import Settings
from bei_core.engines.manifest import TUNED
from bei_core.engines.open import build_engine
from tests.e2e.server import Server, log_shown, vectors, wait_until
from tests.golden.cases import CASES

CASE = CASES[0]
CAPACITY = 16_384  # bytes of each file that the server writes
FULL = (
    "env",
    "BEI_ACCESS_LOG=true",
    "PYTHONDONTWRITEBYTECODE=1",
    "bash",
    "-c",
    f'ulimit -S -f {CAPACITY // 1024} && exec "$@"',
    "bash",
)
NUM_REQUESTS = 120  # enough for more than CAPACITY of log lines, and for graphs for single texts


def test_a_server_answers_while_its_disk_is_full(tmp_path: Path) -> None:
    cache, model = tmp_path / "cache", {"model_id": str(CASE.folder), "dtype": "float32"}
    folder = build_engine(Settings.load({**model, "cache_dir": str(cache)}, {}))
    assert not (folder / TUNED).exists()
    with Server(tmp_path / "server", cache, FULL, **model) as server, log_shown(server), server.client() as client:
        for number in range(NUM_REQUESTS):
            row = number % len(CASE.texts)
            reply = client.post("/v1/embeddings", json={"input": CASE.texts[row]})
            assert reply.status_code == 200, reply.text
            assert np.allclose(vectors(reply.json()), CASE.vectors[row], atol=1e-4)
        assert len(server.log.encode()) == CAPACITY, "the disk was not full"
        assert [path.name for path in (folder / TUNED).iterdir()] == ["verified.json"], "not of the compiled model"
        assert server.get("/health").status_code == 200
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert client.post("/embed", json={"inputs": "a"}, headers={"x-baseten-request-id": "then"}).status_code == 200
        wait_until(lambda: "request_id=then" in server.log)
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
