"""The autoscaler: the number of replicas after each decision, at times given by the tests."""

from __future__ import annotations

import pytest

from bei_core.capacity.autoscaler import Autoscaler, Scaling


def after(autoscaler: Autoscaler, in_flight: int, seconds: int) -> Autoscaler:
    for _ in range(seconds):
        autoscaler.observe(in_flight)
    return autoscaler


def test_replicas_are_added_at_once_as_in_basetens_example() -> None:
    scaling = Scaling(concurrency_target=10, target_utilization=0.7)
    assert after(Autoscaler(scaling), 25, 60).decide(60.0, 1) == 4, "25 in flight, 7 a replica"


@pytest.mark.parametrize(("in_flight", "expected"), [(0, 2), (1_000, 5)])
def test_the_number_stays_within_its_limits(in_flight: int, expected: int) -> None:
    scaling = Scaling(min_replica=2, max_replica=5, concurrency_target=10, scale_down_delay_s=0.0)
    assert after(Autoscaler(scaling), in_flight, 60).decide(60.0, 2) == expected


def test_only_the_samples_of_the_window_count() -> None:
    autoscaler = after(Autoscaler(Scaling(concurrency_target=10, target_utilization=1.0)), 1_000, 60)
    assert after(autoscaler, 20, 60).decide(120.0, 2) == 2


def test_after_each_delay_half_of_the_excess_is_removed() -> None:
    autoscaler = after(Autoscaler(Scaling(scale_down_delay_s=120.0)), 1, 60)
    counts, count = [], 9
    for minute in range(1, 10):
        count = autoscaler.decide(60.0 * minute, count)
        counts.append(count)
    assert counts == [9, 9, 5, 5, 3, 3, 2, 2, 1]


def test_load_that_returns_ends_the_delay() -> None:
    autoscaler = after(Autoscaler(Scaling(scale_down_delay_s=120.0, concurrency_target=10)), 1, 60)
    assert autoscaler.decide(60.0, 4) == 4
    assert after(autoscaler, 28, 60).decide(120.0, 4) == 4
    assert after(autoscaler, 1, 60).decide(180.0, 4) == 4
    assert autoscaler.decide(300.0, 4) == 2


def test_a_burst_is_seen_in_the_panic_window_before_it_is_in_the_whole_one() -> None:
    calm = Scaling(concurrency_target=10, target_utilization=1.0, max_replica=100)
    panics = Scaling(concurrency_target=10, target_utilization=1.0, max_replica=100, panic_window_s=6.0)
    counts = [after(after(Autoscaler(scaling), 10, 54), 500, 6).decide(60.0, 1) for scaling in (calm, panics)]
    assert counts == [6, 50]
