"""The batches that the service runs before it is ready."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.errors import EngineUnavailableError, UnhealthyError
from bei_core.serving.service import Service
from bei_core.tasks import Rows
from tests.fakes import SAFETY_S, FakeEngine
from tests.unit.serving.test_service import opened


@pytest.mark.parametrize(
    ("seconds_per_token", "sizes"), [(2e-5, {15, 31, 47, 63, 79, 95, 111, 127, 1024}), (2e-3, {15, 31})]
)
def test_the_warm_up_leaves_out_batches_that_would_take_long(
    seconds_per_token: float, sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(max_seq_len=1024)

    def now() -> float:
        return seconds_per_token * sum(map(len, engine.seen))

    monkeypatch.setattr("bei_core.serving.service.time", SimpleNamespace(perf_counter=now))
    service = Service(opened(engine, None), Settings.load({}, {}))
    service.start()
    assert {sum(map(len, batch)) for batch in engine.batches} == sizes
    assert now() <= 0.2
    service.close(SAFETY_S)


def test_the_engine_is_warmed_up_before_the_first_request() -> None:
    engine = FakeEngine(max_seq_len=48)
    service = Service(opened(engine, None), Settings.load({}, {}))
    assert not engine.batches
    service.start()
    assert engine.batches
    assert max(len(ids) for ids in engine.seen) <= 48  # the longest that the engine takes
    service.close(SAFETY_S)


@pytest.mark.parametrize("size", [300, 100])
def test_no_batch_of_the_warm_up_has_more_tokens_than_one_of_requests(size: int) -> None:
    engine = FakeEngine(max_seq_len=1024)
    service = Service(opened(engine, None), Settings.load({"max_batch_tokens": size}, {}))
    service.start()
    assert max(sum(map(len, batch)) for batch in engine.batches) == (256 if size == 300 else 100)
    service.close(SAFETY_S)


def test_an_engine_whose_process_ends_in_the_warm_up_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(batch: Batch) -> Rows:
        raise UnhealthyError("the process has ended and is started again")

    engine = FakeEngine()
    monkeypatch.setattr(engine, "forward", forward)
    monkeypatch.setattr("bei_core.serving.service.open_engine", lambda settings: opened(engine, None))
    with pytest.raises(EngineUnavailableError, match=r"ended in the warm-up; see the log$"):
        Service.open(Settings.load({}, {}))
    assert engine.is_closed
