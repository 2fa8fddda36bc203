"""A server whose engine thread ends or hangs: every request ends, and health and exit status show it."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.chaos import crashing
from tests.conftest import MINILM
from tests.e2e.server import ENDLESS, Server, cache_of, log_shown, wait_until

REPOSITORY = Path(crashing.__file__).parents[2]
# A shell that has the folder of `tests` on its path, as pytest has.
PREFIX = ("env", f"PYTHONPATH={REPOSITORY / 'packages'}:{REPOSITORY}", sys.executable, "-m", "tests.chaos.crashing")


def post(server: Server, body: object, replies: list[httpx.Response]) -> None:
    """Adds the reply to a request to `replies`."""
    replies.append(server.post("/embed", body))


class Two(Server):
    """A server of two models instead of one."""

    def __init__(self, folder: Path, cache_dir: Path, **settings: object) -> None:
        config = folder.with_suffix(".yaml")
        named = [f"{name}={MINILM}" for name in ("sound", "other")]
        config.write_text(json.dumps({"model_metadata": {"bei": {"models": named}}}))  # JSON is YAML too
        super().__init__(folder, cache_dir, PREFIX, config=config, **settings)
        for name in ("model_id", "served_model_name"):
            del self._settings[name]


@pytest.fixture
def server(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one model."""
    folder, cache = tmp_path / "server", cache_of(tmp_path_factory)
    with Server(folder, cache, PREFIX, max_queue_wait_s=1000) as server, log_shown(server):  # also on a slow machine
        yield server


def test_a_server_whose_engine_thread_ends_answers_all_and_ends_with_status_1(server: Server) -> None:
    replies: list[httpx.Response] = []

    def ask(inputs: object) -> threading.Thread:
        thread = threading.Thread(target=lambda: replies.append(server.post("/embed", {"inputs": inputs})))
        thread.start()
        return thread

    threads = [ask(ENDLESS)]
    wait_until(lambda: server.metrics()["te_queue_size"] > 0)
    threads += [ask(ENDLESS[:20]) for _ in range(3)]
    threads.append(ask([[666]]))
    since = time.monotonic()
    assert server.wait() == 1
    print(f"ended after {time.monotonic() - since:.1f} s")
    for thread in threads:
        thread.join()
    assert len(replies) == len(threads)
    assert {reply.status_code for reply in replies} <= {200, 424, 503}
    assert 424 in {reply.status_code for reply in replies}
    assert "error: the engine thread failed (SystemExit)" in server.log


def test_a_model_whose_engine_hangs_does_not_stop_the_other(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        Two(tmp_path / "server", cache_of(tmp_path_factory), hang_timeout_s=2, drain_timeout_s=1000) as server,
        log_shown(server),
    ):
        hung: list[httpx.Response] = []
        body = {"inputs": [[667]], "model": "other"}
        thread = threading.Thread(target=lambda: hung.append(server.post("/embed", body)))
        thread.start()
        wait_until(lambda: server.metrics()["te_request_count"] >= 1)
        for _ in range(3):
            assert server.post("/embed", {"inputs": "text", "model": "sound"}).status_code == 200
        thread.join()
        assert (hung[0].status_code, hung[0].json()["error_type"]) == (424, "Backend")
        assert server.post("/embed", {"inputs": "text", "model": "other"}).status_code == 503
        assert server.post("/embed", {"inputs": "text", "model": "sound"}).status_code == 200
        assert server.get("/health").status_code == 503
        assert server.is_running
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0, "its end waits for the engine that hangs"
        assert "drained; goodbye" in server.log
        assert server.log.count("failing") == 1


def test_an_engine_in_a_process_is_started_again_and_the_other_model_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = cache_of(tmp_path_factory)
    with Two(tmp_path / "server", cache, hang_timeout_s=2, engine_process=True) as server, log_shown(server):
        for num_restarts, fault in enumerate((667, 668), 1):  # it hangs, it crashes
            failed: list[httpx.Response] = []
            body = {"inputs": [[fault], [1000]], "model": "other"}
            thread = threading.Thread(target=post, args=(server, body, failed))
            thread.start()
            for _ in range(3):
                assert server.post("/embed", {"inputs": "text", "model": "sound"}).status_code == 200
            thread.join()
            assert (failed[0].status_code, failed[0].json()["error_type"]) == (503, "Unhealthy")
            wait_until(lambda: server.metrics()["bei_engine_restarts_total"] == num_restarts)  # noqa: B023 - used here
            assert server.get("/health").status_code == 200
            assert server.post("/embed", {"inputs": "text", "model": "other"}).status_code == 200
        assert "the engine has not answered for" in server.log
        assert "the process of the engine ended by SIGSEGV" in server.log


def test_a_server_with_its_engine_in_a_process_answers_all_it_has_accepted_and_leaves_no_process(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Server(
        tmp_path / "server", cache_of(tmp_path_factory), PREFIX, engine_process=True, drain_timeout_s=1000
    ) as server:
        (child,) = psutil.Process(server.pid).children()
        replies: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: replies.append(server.post("/embed", {"inputs": ENDLESS[:96]})))
        thread.start()
        wait_until(lambda: server.metrics()["te_queue_size"] > 0)
        child.send_signal(signal.SIGTERM)  # as from a supervisor that sends it to every process
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        thread.join()
        assert replies[0].status_code == 200
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
