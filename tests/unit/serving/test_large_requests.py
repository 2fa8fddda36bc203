"""Large requests beside a flood of small ones, on the simulated engine: everything accepted is answered in time."""

from __future__ import annotations

import math
from functools import cache

import pytest

from bei_core.serving.queue import ServiceRate
from tests.unit.serving.test_admission import BUDGET, FIXED_S, LENGTH, TOKEN_S, Request, Simulation, poisson

MAX_WAIT_S = 2.0
SLOW_TOKEN_S, FAST_TOKEN_S = 3 * TOKEN_S, 0.45 * TOKEN_S
LONG, COUNT = 256, 64  # tokens of a text, and texts of a large request


def alone_s(token_s: float) -> float:
    """The seconds of a large request without other load."""
    return COUNT * LONG / BUDGET * (FIXED_S + BUDGET * token_s)


def capacity(token_s: float) -> float:
    """The small requests a second that fill the engine."""
    return BUDGET // LENGTH / (FIXED_S + BUDGET // LENGTH * LENGTH * token_s)


@cache
def flooded(*, repeats: bool = False, token_s: float = SLOW_TOKEN_S) -> tuple[Simulation, list[Request]]:
    """Three times the capacity in small requests, and two clients that send a large one after the other."""
    simulation, large = Simulation(MAX_WAIT_S, token_s=token_s), list[Request]()
    clients: dict[int, Request | None] = {0: None, 1: None}
    for arrived in poisson(3 * capacity(token_s), 18.0):
        simulation.offer(Request(arrived), LENGTH)
        for client, sent in clients.items():
            if sent is None or sent.ended < math.inf:
                request = Request(arrived, repeats=repeats)
                clients[client] = request if simulation.offer(request, *[LONG] * COUNT) else None
                large += [request] * (clients[client] is not None)
    simulation.drain()
    return simulation, large


@pytest.mark.parametrize("repeats", [False, True])
def test_beside_large_requests_small_ones_are_answered_in_time(repeats: bool) -> None:
    simulation, large = flooded(repeats=repeats)
    waits = sorted(request.ended - request.arrived for request in simulation.done if request not in large)
    assert len(waits) > 5 * capacity(SLOW_TOKEN_S)
    assert waits[int(0.99 * len(waits))] <= MAX_WAIT_S


@pytest.mark.parametrize("token_s", [SLOW_TOKEN_S, FAST_TOKEN_S])
def test_beside_a_flood_large_requests_get_half_of_the_engine(token_s: float) -> None:
    """On a fast engine the line is most of their time: they waited for it twice."""
    simulation, large = flooded(token_s=token_s)
    assert len(large) >= 2
    assert max(request.ended - request.arrived for request in large) <= MAX_WAIT_S + 2 * 2 * alone_s(token_s)
    num_small = len(simulation.done) - len(large)
    assert num_small >= 0.35 * capacity(token_s) * simulation.now, "and the small ones get the other half"


def test_large_requests_that_take_less_than_their_half_do_not_save_it_for_later() -> None:
    """After a minute of them, the next large request had the engine alone for 10 s."""
    simulation, begin_s, later = Simulation(5 * MAX_WAIT_S, token_s=SLOW_TOKEN_S), 60.0, Request(math.inf)
    coming = poisson(0.4 * capacity(SLOW_TOKEN_S) * LENGTH / (5 * LONG), begin_s)
    for arrived in poisson(3 * capacity(SLOW_TOKEN_S), begin_s + 24.0):
        if coming and arrived >= coming[0]:
            simulation.offer(Request(coming.pop(0)), *[LONG] * 5)
        if arrived >= begin_s and later.arrived == math.inf:
            request = Request(arrived)
            later = request if simulation.offer(request, *[LONG] * 2 * COUNT) else later
        simulation.offer(Request(arrived), LENGTH)
    simulation.drain()
    assert later.ended < math.inf
    ends = [request.ended for request in simulation.done if request is not later and request.ended > begin_s]
    for begin in range(18):
        num_small = sum(begin_s + begin <= end < begin_s + begin + 6.0 for end in ends)
        assert num_small >= 0.35 * 6.0 * capacity(SLOW_TOKEN_S)


def test_large_requests_are_accepted_beside_each_other_and_share_the_engine() -> None:
    simulation = Simulation(2 * MAX_WAIT_S, token_s=SLOW_TOKEN_S)
    large = [Request(0.0) for _ in range(4)]
    assert all(simulation.offer(request, *[LONG] * COUNT) for request in large)
    assert simulation.offer(small := Request(0.0), LONG)
    simulation.drain()
    assert min(request.ended for request in large) >= 3.5 * alone_s(SLOW_TOKEN_S)
    assert small.ended <= 2 * MAX_WAIT_S


def test_a_small_request_that_waits_is_not_overtaken_by_a_large_one_that_comes_later() -> None:
    simulation = Simulation(MAX_WAIT_S, token_s=SLOW_TOKEN_S)
    small = []
    while simulation.offer(request := Request(0.0), LENGTH):
        small.append(request)
    arrived = 1.2 * (FIXED_S + BUDGET * SLOW_TOKEN_S)
    assert simulation.offer(large := Request(arrived), *[LONG] * 8)
    simulation.drain()
    assert max(request.ended for request in small) < large.ended
    assert max(request.ended for request in small) <= MAX_WAIT_S


def test_the_rate_counts_the_tokens_that_were_computed() -> None:
    rate = ServiceRate()
    for _ in range(16):
        rate.add(BUDGET, FIXED_S + BUDGET * TOKEN_S)
        rate.add(BUDGET, FIXED_S + BUDGET / 4 * TOKEN_S, BUDGET // 4)
    assert rate.seconds(BUDGET, BUDGET) == pytest.approx(FIXED_S + BUDGET * TOKEN_S, rel=0.05)


def test_if_all_batches_share_tokens_the_next_ones_are_expected_to() -> None:
    rate = ServiceRate()
    for _ in range(16):
        rate.add(BUDGET, FIXED_S + BUDGET / 4 * TOKEN_S, BUDGET // 4)
    assert rate.seconds(BUDGET, BUDGET) == pytest.approx(FIXED_S + BUDGET / 4 * TOKEN_S, rel=0.05)
    rate.add(BUDGET, FIXED_S + BUDGET * TOKEN_S)
    assert rate.seconds(BUDGET, BUDGET) == pytest.approx(FIXED_S + BUDGET * TOKEN_S, rel=0.3)
