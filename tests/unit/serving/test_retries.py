"""Under overload, retries beyond their budget displace no first attempts, in a simulation without a clock."""

from __future__ import annotations

import pytest

from tests.unit.serving.test_admission import CAPACITY, LENGTH, Request, Simulation, poisson


@pytest.mark.parametrize("first_load", [0.4, 0.8])
def test_a_storm_of_retries_displaces_no_first_attempt_and_leaves_no_time_unused(first_load: float) -> None:
    simulation, seconds = Simulation(max_wait_s=2.0), 20.0
    first = [Request(arrived) for arrived in poisson(first_load * CAPACITY, seconds)]
    storm = [Request(arrived, is_retry=True) for arrived in poisson(5 * CAPACITY, seconds, seed=1)]
    refused = {False: 0, True: 0}
    for request in sorted(first + storm, key=lambda each: each.arrived):
        refused[request.is_retry] += not simulation.offer(request, LENGTH)
    assert refused[False] <= 0.01 * len(first)
    assert sum(request.ended <= seconds for request in simulation.done) >= 0.95 * CAPACITY * seconds
    assert {refusal.cause for refusal in simulation.refused} >= {"retry_budget"}


def test_some_retries_are_accepted_beside_a_flood_of_first_attempts() -> None:
    simulation, seconds = Simulation(max_wait_s=1.0), 20.0
    first = [Request(arrived) for arrived in poisson(3 * CAPACITY, seconds)]
    retries = [Request(arrived, is_retry=True) for arrived in poisson(3 * CAPACITY, seconds, seed=1)]
    for request in sorted(first + retries, key=lambda each: each.arrived):
        simulation.offer(request, LENGTH)
    simulation.drain()
    share = sum(request.is_retry for request in simulation.done) / sum(not each.is_retry for each in simulation.done)
    assert 0.15 <= share <= 0.25


def test_a_retry_is_told_to_wait_for_twice_as_long() -> None:
    simulation = Simulation(max_wait_s=30.0)
    while simulation.offer(Request(0.0), LENGTH):
        pass
    assert not simulation.offer(Request(0.0, is_retry=True), LENGTH)
    first, retry = simulation.refused
    assert retry.retry_after_s == pytest.approx(2 * first.retry_after_s, abs=1)
