"""A job whose engine is in a process of its own, which ends."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from bei_core.engines.batch import Batch
from bei_core.errors import BeiError, UnhealthyError
from bei_core.tasks import Rows
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.test_job import run


def test_an_engine_whose_process_ends_ends_the_job_and_no_row_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    engine = opens(monkeypatch)
    forward, num_calls = engine.forward, count()

    def lost(batch: Batch) -> Rows:
        if next(num_calls) == 1:
            raise UnhealthyError("the process has ended and is started again")
        return forward(batch)

    monkeypatch.setattr(engine, "forward", lost)
    with pytest.raises(BeiError, match=r"^the process of the engine has ended; see the log, and start the job again$"):
        run(source, tmp_path / "out", rows_per_part=10)
    report = run(source, tmp_path / "out", rows_per_part=10)
    assert (report.num_parts_before, report.num_rejected) == (1, 0)
