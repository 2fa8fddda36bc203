"""Admission, with a clock that the test sets: the engine stays busy under any load, and waits are bounded."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import cache

import pytest

from bei_core.errors import OverloadedError
from bei_core.serving.admission import Admission, Running
from bei_core.serving.queue import HEAD_START_S, SHORTEST_CLASS, Item, Pending, ServiceRate
from tests.fakes import tokens_of_length

tokens_of = cache(tokens_of_length)

BUDGET = 1024
FIXED_S, TOKEN_S = 0.004, 120e-6  # of a batch and of a token: about those of all-MiniLM-L6-v2 on two cores
LENGTH = 11  # tokens of a short text
CAPACITY = BUDGET // LENGTH / (FIXED_S + BUDGET // LENGTH * LENGTH * TOKEN_S)  # short texts a second, of full batches


@dataclass(eq=False)
class Request:
    """One request of the simulation."""

    arrived: float
    priority: str = "normal"
    deadline: float | None = None
    waiting: int = 1
    ended: float = math.inf
    repeats: bool = False  # all its texts are equal: the engine computes one of them
    is_retry: bool = False

    @property
    def abandoned(self) -> bool:
        return False


@dataclass
class Simulation:
    """The queue, its admission and an engine whose batches take a fixed time and a time per token."""

    max_wait_s: float = math.inf
    max_tokens: int | None = None
    token_s: float = TOKEN_S
    most: int = 0
    now: float = 0.0
    pending: Pending[Request] = field(default_factory=lambda: Pending(BUDGET))
    done: list[Request] = field(default_factory=list)
    expired: list[Request] = field(default_factory=list)
    refused: list[OverloadedError] = field(default_factory=list)
    busy_s: float = 0.0
    _free_at: float = 0.0
    _num_computed: int = 0
    _running: list[Item[Request]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.pending, budget=BUDGET, most=self.most, max_wait_s=self.max_wait_s, max_tokens=self.max_tokens
        )
        for size in (1, 128, BUDGET):  # the warm-up
            self.admission.rate.add(size, FIXED_S + self.token_s * size)

    def offer(self, request: Request, *lengths: int) -> bool:
        """Whether the request was accepted."""
        self.advance(request.arrived)
        if self.pending.num_items:
            try:
                self.admission.check_arrival(self.now, request.priority, 0, is_retry=request.is_retry)
                self.admission.accepted(is_retry=request.is_retry)
                self.admission.check(sum(lengths), self.now, request.priority, request.deadline, len(lengths))
            except OverloadedError as refusal:
                self.refused.append(refusal)
                return False
        request.waiting = len(lengths)
        rank = self.now - HEAD_START_S[request.priority]
        items = [Item(tokens_of(length), request, i, rank, request.deadline) for i, length in enumerate(lengths)]
        self.pending.put(items, self.now)
        return True

    def advance(self, until: float) -> None:
        """Runs batches until then."""
        while True:
            if self._running and self._free_at > until:
                break
            if self._running:
                self._end_batch()
            elif not self.pending.num_items:
                break
            self._begin_batch()
        self.now = max(self.now, until)

    def drain(self) -> None:
        """Runs all that waits."""
        while self.pending.num_items or self._running:
            self.advance(self._free_at)

    def _begin_batch(self) -> None:
        taken = self.pending.take(self.admission.budget, self.now, expected_s=self.admission.expected_s)
        self.expired += [item.owner for item in taken.expired]
        if taken.items:
            distinct = {item.owner if item.owner.repeats else item: len(item.tokens) for item in taken.items}
            self._num_computed = sum(distinct.values())
            seconds = FIXED_S + self.token_s * self._num_computed
            self._running, self._free_at = taken.items, self.now + seconds
            self.busy_s += seconds
            self.admission.running = Running(taken.items, taken.num_tokens, self.now)

    def _end_batch(self) -> None:
        self.now, started = self._free_at, self.admission.running.started
        if started is not None:
            num_tokens = self.admission.running.num_tokens
            self.admission.rate.add(num_tokens, self.now - started, self._num_computed)
        for item in self._running:
            item.owner.waiting -= 1
            if not item.owner.waiting:
                item.owner.ended = self.now
                self.done.append(item.owner)
        self._running, self.admission.running = [], Running()


def poisson(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Times of arrival."""
    numbers, found, now = random.Random(seed), list[float](), 0.0
    while (now := now + numbers.expovariate(rate)) < seconds:
        found.append(now)
    return found


def waits(simulation: Simulation) -> list[float]:
    """Sorted seconds from arrival to the end of each request."""
    return sorted(request.ended - request.arrived for request in simulation.done)


@pytest.mark.parametrize(
    ("load", "max_wait_s"),
    [(0.5, 1.0), (1.0, 0.25), (5.0, 0.25), (5.0, 2.0), pytest.param(8.0, 1.0, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("most", [0, 4 * BUDGET])
def test_goodput_is_that_of_full_batches_and_the_wait_is_bounded_under_any_load(
    load: float, max_wait_s: float, most: int
) -> None:
    simulation, seconds = Simulation(max_wait_s, most=most), 6.0
    for arrived in poisson(load * CAPACITY, seconds):
        simulation.offer(Request(arrived), LENGTH)
    in_time = sum(request.ended <= seconds for request in simulation.done)
    assert in_time / seconds >= 0.95 * min(load, 1.0) * CAPACITY
    simulation.drain()
    assert waits(simulation)[-1] <= max_wait_s
    assert len(simulation.refused) == 0 or load >= 1.0


@pytest.mark.parametrize("load", [3.0, pytest.param(8.0, marks=pytest.mark.long)])
def test_under_overload_those_who_have_a_deadline_are_answered_in_time_or_refused_at_once(load: float) -> None:
    simulation, seconds = Simulation(max_wait_s=10.0), 6.0
    for arrived in poisson(load * CAPACITY, seconds):
        simulation.offer(Request(arrived, deadline=arrived + 0.5), LENGTH)
    goodput = sum(request.ended <= seconds for request in simulation.done) / seconds
    assert goodput >= 0.95 * CAPACITY
    simulation.drain()
    late = [request for request in simulation.done if request.deadline is not None and request.ended > request.deadline]
    assert len(late) + len(simulation.expired) <= 0.01 * len(simulation.done)
    assert {refusal.cause for refusal in simulation.refused} == {"deadline"}


def test_an_engine_that_becomes_slower_is_believed() -> None:
    simulation, seconds = Simulation(max_wait_s=1.0), 10.0
    for arrived in poisson(3 * CAPACITY, seconds):
        simulation.token_s = TOKEN_S if arrived < 5.0 else 3 * TOKEN_S
        simulation.offer(Request(arrived), LENGTH)
    simulation.drain()
    settled = [request.ended - request.arrived for request in simulation.done if request.arrived > 8.0]
    assert max(settled) <= 1.0 + 2 * (FIXED_S + 3 * BUDGET * TOKEN_S)


def test_a_high_priority_request_is_accepted_when_others_are_refused() -> None:
    simulation = Simulation(max_wait_s=4.0)
    numbers, accepted = random.Random(1), dict.fromkeys(HEAD_START_S, 0)
    offered = dict.fromkeys(HEAD_START_S, 0)
    for arrived in poisson(3 * CAPACITY, 12.0):
        priority = numbers.choices(["high", "normal", "low"], [1, 8, 3])[0]
        offered[priority] += 1
        accepted[priority] += simulation.offer(Request(arrived, priority), LENGTH)
    shares = {priority: accepted[priority] / offered[priority] for priority in offered}
    assert shares["high"] == 1.0
    assert shares["low"] < 0.2 * shares["normal"]
    simulation.drain()
    assert max(r.ended - r.arrived for r in simulation.done if r.priority == "high") < 4.0


@pytest.mark.parametrize("cause", ["queue_wait", "queue_tokens", "deadline"])
def test_retry_after_is_the_time_that_the_queue_takes(cause: str) -> None:
    simulation = Simulation(max_wait_s=5.0 if cause == "queue_wait" else 1e9, max_tokens=100_000)
    deadline = 2.0 if cause == "deadline" else None
    while simulation.offer(Request(0.0, deadline=deadline), LENGTH):
        pass
    (refusal,) = simulation.refused
    assert refusal.cause == cause
    simulation.drain()
    took_s = simulation.now - (2.0 if cause == "deadline" else 0.0)
    assert took_s <= refusal.retry_after_s <= took_s + 1.2
    assert f"try again in {refusal.retry_after_s} s" in refusal.message


def test_no_client_is_told_to_wait_for_more_than_a_minute() -> None:
    simulation = Simulation(max_wait_s=1.0, token_s=0.1)
    while simulation.offer(Request(0.0), 512):
        pass
    assert simulation.refused[-1].retry_after_s == 60


def test_one_batch_may_always_wait_however_slow_the_engine_is() -> None:
    simulation = Simulation(max_wait_s=0.1, token_s=1.0)
    simulation.offer(Request(0.0), 1000)
    simulation.advance(0.1)
    accepted = sum(simulation.offer(Request(0.1), 100) for _ in range(50))
    assert simulation.admission.budget == SHORTEST_CLASS
    assert accepted == math.ceil(SHORTEST_CLASS / 100)


def test_before_the_first_batch_nothing_is_known_and_nothing_refused() -> None:
    pending: Pending[Request] = Pending(BUDGET)
    admission = Admission(pending, budget=BUDGET, max_wait_s=0.1)
    for _ in range(1000):
        pending.put([Item(tokens_of(LENGTH), Request(0.0), 0, 0.0)], 0.0)
    admission.check(LENGTH, 0.0, "low", 0.001)
    assert admission.wait_s(0.0) == 0.0


# --- Requests of many inputs


def test_a_small_request_waits_for_one_turn_of_each_large_one() -> None:
    simulation = Simulation()
    large = [Request(0.0) for _ in range(4)]
    for request in large:
        assert simulation.offer(request, *[256] * 1024)
    small = Request(5.0, deadline=7.0)
    assert simulation.offer(small, 20)
    simulation.drain()
    batch_s = FIXED_S + BUDGET * TOKEN_S
    assert small.ended - small.arrived <= (len(large) + 2) * batch_s
    ends = sorted(request.ended for request in large)
    assert ends[-1] - ends[0] <= 2 * len(large) * batch_s, "they advance equally fast"
    assert ends[-1] == pytest.approx(4 * 1024 * 256 / BUDGET * batch_s, rel=0.01), "and every batch is full"


def test_a_large_request_that_comes_later_gets_its_share_at_once() -> None:
    simulation = Simulation()
    first, second = Request(0.0), Request(10.0)
    simulation.offer(first, *[256] * 1024)
    simulation.offer(second, *[256] * 100)
    simulation.drain()
    alone_s = 100 * 256 / BUDGET * (FIXED_S + BUDGET * TOKEN_S)
    assert second.ended - second.arrived <= 2.2 * alone_s


def test_a_large_request_advances_under_a_flood_of_small_ones() -> None:
    simulation = Simulation(max_wait_s=0.5)
    large = Request(0.0)
    simulation.offer(large, *[256] * 40)  # ten turns
    for arrived in poisson(3 * CAPACITY, 8.0):
        simulation.offer(Request(arrived), LENGTH)
    assert large.ended <= 10 * (0.5 + 3 * (FIXED_S + BUDGET * TOKEN_S))


def test_a_large_request_whose_deadline_cannot_be_met_is_refused_and_a_small_one_is_not() -> None:
    simulation = Simulation()
    simulation.offer(Request(0.0), *[256] * 1024)
    simulation.advance(1.0)
    assert not simulation.offer(Request(1.0, deadline=4.0), *[256] * 100)  # alone it takes 3.2 s, beside another 6.4 s
    assert simulation.offer(Request(1.0, deadline=9.0), *[256] * 100)
    assert simulation.offer(Request(1.0, deadline=2.0), 20)


# --- The rate


def test_the_rate_is_found_from_batches_of_any_sizes() -> None:
    numbers, rate = random.Random(0), ServiceRate()
    for _ in range(64):
        size = numbers.randint(1, BUDGET)
        rate.add(size, (FIXED_S + TOKEN_S * size) * numbers.uniform(0.9, 1.1))
    for size in (100, 1000, 10_000):
        exact = math.ceil(size / BUDGET) * FIXED_S + size * TOKEN_S
        assert rate.seconds(size, BUDGET) == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize(
    "batches", [[(10, 0.1)] * 5, [(10, 0.5), (1000, 0.1)], [(7, 0.0)], [(1, 0.0), (2, 1.0)]], ids=str
)
def test_whatever_the_batches_took_no_time_is_negative(batches: list[tuple[int, float]]) -> None:
    rate = ServiceRate()
    for batch in batches:
        rate.add(*batch)
    times = [rate.seconds(size, BUDGET) for size in (0, 1, 100, 10_000)]
    assert times[0] == 0.0
    assert times == sorted(times)


def test_a_few_batches_show_that_the_machine_is_slower_now() -> None:
    rate = ServiceRate()
    for size in (*range(10, 1000, 30), *[BUDGET] * 8):
        rate.add(size, FIXED_S + size * TOKEN_S)
    for _ in range(3):
        rate.add(BUDGET, 3 * (FIXED_S + BUDGET * TOKEN_S))
    assert rate.seconds(BUDGET, BUDGET) == pytest.approx(3 * (FIXED_S + BUDGET * TOKEN_S), rel=0.01)


def test_a_process_that_was_stopped_does_not_spoil_the_estimate() -> None:
    rate = ServiceRate()
    for size in (*range(100, 1000, 30), 500):
        rate.add(size, 300.0 if size == 500 else FIXED_S + size * TOKEN_S)
    assert rate.seconds(BUDGET, BUDGET) < 2 * (FIXED_S + BUDGET * TOKEN_S)


def test_a_batch_may_end_while_the_event_loop_asks_for_the_rate() -> None:
    """The engine's thread adds a batch at any moment: the event loop found changed lists and closed a connection."""
    rate, ends = ServiceRate(), False

    class Seconds(float):
        def __truediv__(self, other: float) -> float:
            nonlocal ends
            if ends:
                ends = False
                rate.add(BUDGET, FIXED_S + BUDGET * TOKEN_S)
                ends = True
            return float(self) / other

    for size in (100, 200, 500, 1000):
        rate.add(size, Seconds(FIXED_S + size * TOKEN_S))
    ends = True
    rate.seconds(BUDGET, BUDGET)
    assert rate.seconds(BUDGET, BUDGET) == pytest.approx(FIXED_S + BUDGET * TOKEN_S, rel=0.01)


def test_after_a_refusal_requests_are_accepted_once_a_whole_batch_fits_into_the_line() -> None:
    simulation = Simulation(max_wait_s=1.0)
    while simulation.offer(Request(0.0), LENGTH):
        pass
    refused = [*simulation.refused]
    batch_s = FIXED_S + BUDGET * TOKEN_S
    assert not simulation.offer(Request(0.5 * batch_s), LENGTH)
    assert simulation.offer(Request(0.5 * batch_s, "high"), LENGTH), "each priority for itself"
    num_accepted = sum(simulation.offer(Request(1.2 * batch_s), LENGTH) for _ in range(2 * BUDGET // LENGTH))
    assert 0.9 * BUDGET <= num_accepted * LENGTH <= 1.5 * BUDGET
    assert len(refused) == 1


def test_requests_that_are_accepted_and_not_queued_yet_count() -> None:
    simulation = Simulation(max_wait_s=1.0)
    for _ in range(2 * BUDGET // LENGTH):
        assert simulation.offer(Request(0.0), LENGTH)
    simulation.admission.check_arrival(0.0, "normal", num_coming=BUDGET // LENGTH)
    with pytest.raises(OverloadedError):
        simulation.admission.check_arrival(0.0, "normal", num_coming=6 * BUDGET // LENGTH)
    with pytest.raises(OverloadedError):
        simulation.admission.check_arrival(0.0, "normal", num_coming=4 * BUDGET // LENGTH)
    simulation.admission.check_line(0.0, "normal")


def test_after_its_arrival_a_request_is_not_refused_for_a_few_percent() -> None:
    """The expected wait changes while a request is read; to refuse it then would cost as much as to answer it."""
    simulation = Simulation(max_wait_s=1.0)
    while simulation.offer(Request(0.0), LENGTH):
        pass
    admission, seconds = simulation.admission, FIXED_S + BUDGET * TOKEN_S
    admission.check_line(0.0, "normal")
    for _ in range(20):
        admission.rate.add(BUDGET, 1.02 * seconds)
    admission.check_line(0.0, "normal")
    for _ in range(20):
        admission.rate.add(BUDGET, 1.1 * seconds)
    with pytest.raises(OverloadedError):
        admission.check_line(0.0, "normal")


def test_the_inputs_of_a_batch_are_a_number_while_the_engine_empties_the_queue() -> None:
    class Emptied:
        """A queue that is emptied after its tokens were read once."""

        num_items, num_tokens_in_line, left = 4, 48, [0, 0, 48]

        @property
        def num_tokens(self) -> int:
            return self.left.pop()

    admission = Admission(Emptied(), budget=BUDGET)  # type: ignore[arg-type]  # all that is read of it
    assert admission.num_inputs_of_batch == 4 * BUDGET // 48
    assert admission.num_inputs_of_batch >= 1
