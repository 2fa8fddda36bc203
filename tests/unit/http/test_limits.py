"""The bytes of all bodies in memory stay within a limit; beyond it, the largest incomplete body is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from bei_core.errors import OverloadedError
from bei_core.http.bodies import joined
from bei_core.http.limits import LEASE, SLOW_READ_S, BodyBudget, BodyLease, count_bytes, hold_bytes


class Request:
    """A body, and whether it was refused to keep the limit."""

    def __init__(self, budget: BodyBudget, num_bytes: int, *, is_complete: bool = False) -> None:
        self.is_refused = False
        self.lease = BodyLease(budget, self._refuse)
        self.lease.grow(num_bytes)
        if is_complete:
            self.lease.complete()

    def _refuse(self) -> None:
        self.is_refused = True


def test_released_bytes_can_be_taken_again() -> None:
    budget = BodyBudget(100)
    request = Request(budget, 100)
    request.lease.release()
    request.lease.release()
    assert budget.num_bytes == 0
    request.lease.grow(1000)  # comes after the end, and is thrown away
    assert budget.num_bytes == 0
    assert not budget.incomplete
    assert Request(budget, 100).lease.num_bytes == 100


def test_the_largest_incomplete_request_is_refused() -> None:
    budget = BodyBudget(100)
    complete = Request(budget, 50, is_complete=True)
    small, large = Request(budget, 10), Request(budget, 35)
    other = Request(budget, 10)
    assert [request.is_refused for request in (complete, small, large, other)] == [False, False, True, False]
    assert budget.num_bytes == 70


def test_a_request_that_is_itself_the_largest_is_refused_and_keeps_its_bytes() -> None:
    budget = BodyBudget(100)
    Request(budget, 40)
    large = Request(budget, 50)
    with pytest.raises(OverloadedError, match="100 bytes"):
        large.lease.grow(20)
    assert (large.lease.num_bytes, budget.num_bytes) == (50, 90)
    assert not large.is_refused


def test_complete_bodies_are_not_refused_for_others() -> None:
    budget = BodyBudget(100)
    complete = Request(budget, 90, is_complete=True)
    with pytest.raises(OverloadedError):
        Request(budget, 20)
    assert not complete.is_refused


def test_clients_that_read_slowly_make_way_before_incomplete_requests() -> None:
    clock = Mock(return_value=0.0)
    budget = BodyBudget(100, clock=clock)
    slowest, slow, quick = (Request(budget, 20, is_complete=True) for _ in range(3))
    for request in (slowest, slow, quick):
        clock.return_value += 1.0
        budget.wait_for(request.lease)
    incomplete = Request(budget, 40)
    clock.return_value = 2.0 + SLOW_READ_S
    budget.has_read(slow.lease)
    budget.wait_for(slow.lease)  # it has read a part
    Request(budget, 10)
    assert [each.is_refused for each in (slowest, slow, quick, incomplete)] == [True, False, False, False]
    Request(budget, 35)
    assert [each.is_refused for each in (slowest, slow, quick, incomplete)] == [True, False, False, True]


def test_the_application_counts_the_memory_of_decoded_bodies() -> None:
    budget = BodyBudget(100)
    request = Request(budget, 10, is_complete=True)
    scope = {"extensions": {LEASE: request.lease}}
    count_bytes(scope, 80)
    assert budget.num_bytes == 90
    with pytest.raises(OverloadedError):
        count_bytes(scope, 11)
    count_bytes({}, 1_000_000)  # a server without a budget
    hold_bytes(scope, 70)
    hold_bytes(scope, 200)  # what is encoded is more than was counted for it, which cannot be refused any more
    hold_bytes({}, 1_000_000)
    assert budget.num_bytes == 70
    request.lease.release()
    assert budget.num_bytes == 0


async def test_a_large_body_is_joined_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop took 30 ms for 32 MB. While there are two copies of the body, both count."""
    threads, counted, budget = list[bool](), list[int](), BodyBudget(2000)
    scope = {"extensions": {LEASE: BodyLease(budget, lambda: None)}}

    class Parts:
        def __init__(self, *parts: bytes) -> None:
            self.left = list(parts)

        def __iter__(self) -> Iterator[bytes]:
            for part in self.left:
                threads.append(threading.current_thread() is threading.main_thread())
                counted.append(budget.num_bytes)
                yield part

        def clear(self) -> None:
            self.left = []

    large = Parts(b"a" * 600, b"b" * 600)
    monkeypatch.setattr("bei_core.http.codings.LARGE_BYTES", 1199)
    assert await joined(large, 1200, scope) == b"a" * 600 + b"b" * 600  # type: ignore[arg-type]
    assert await joined(Parts(b"a" * 600), 600, scope) == b"a" * 600  # type: ignore[arg-type]
    assert threads == [False, False, True]
    assert counted == [1200, 1200, 0]
    assert not large.left
    assert not budget.num_bytes
