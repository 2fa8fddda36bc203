"""The progress of a download, on a terminal and in logs."""

from __future__ import annotations

import logging

import pytest

from bei_core.storage.progress import Progress, rate, size


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_logs_get_a_line_at_the_start_now_and_then_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO), Progress("s3://b/m", 4_000_000, terminal=False, clock=clock) as progress:
        progress.skip(1_000_000)
        for _ in range(30):
            progress.add(100_000)
            clock.now += 1
    assert caplog.messages == [
        "fetching s3://b/m: 4.0 MB",
        "fetching s3://b/m: 2.1 MB of 4.0 MB (52%)",
        "fetching s3://b/m: 3.1 MB of 4.0 MB (78%)",
        "fetched s3://b/m: 3.0 MB in 30.0 s (100.0 kB/s)",
    ]


def test_a_failed_fetch_is_not_logged_as_fetched(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(RuntimeError, match="broken"),
        Progress("x", None, terminal=False),
    ):
        raise RuntimeError("broken")
    assert caplog.messages == ["fetching x: size unknown"]


def test_a_terminal_gets_a_bar(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO), Progress("s3://b/m", 4_000_000, terminal=True) as progress:
        progress.skip(1_000_000)
        progress.add(3_000_000)
    assert "s3://b/m: 100%" in capsys.readouterr().err
    assert [message.partition(" in ")[0] for message in caplog.messages] == ["fetched s3://b/m: 3.0 MB"]


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (15_500_000_000, "15.5 GB"), (2e15, "2000.0 TB")],
)
def test_sizes_are_for_people(count: float, said: str) -> None:
    assert size(count) == said


def test_a_rate_over_zero_seconds_is_finite() -> None:
    assert rate(1000, 0) == "1.0 kB in 0.0 s (1.0 MB/s)"
