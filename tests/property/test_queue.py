"""The guarantees of `Pending` for any arrivals; its docstring has the bound on how long an item can wait."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei_core.serving.queue import HEAD_START_S, SHORTEST_CLASS, Item, Pending, Taken
from tests.fakes import tokens_of_length
from tests.strategies import lengths

BUDGET = 512


@dataclass(eq=False)
class Caller:
    abandoned: bool = False


@dataclass(frozen=True)
class Arrival:
    length: int
    priority: str = "normal"
    leaves: bool = False  # abandoned before the next batch
    deadline: float | None = None


@dataclass
class Waiting:
    """The bound for one waiting item, from the items ahead of it."""

    ahead: int = 0  # tokens
    num_ahead: int = 0
    batches: int = 0  # that have left since


@dataclass
class Queue:
    """A queue with a clock, that checks each batch against what was put in."""

    budget: int = BUDGET
    max_items: int | None = None
    now: float = 0.0
    pending: Pending[Caller] = field(default_factory=lambda: Pending(BUDGET))
    waits: dict[Item[Caller], Waiting] = field(default_factory=dict)
    order: list[Item[Caller]] = field(default_factory=list)  # all that were ever put, as they came
    left: list[Item[Caller]] = field(default_factory=list)  # taken or expired, as they went

    def put(self, arrival: Arrival) -> Item[Caller]:
        item = Item(
            tokens_of_length(arrival.length),
            Caller(arrival.leaves),
            len(self.order),
            self.now - HEAD_START_S[arrival.priority],
            arrival.deadline,
        )
        self.waits[item] = Waiting()
        for other in self.waits:
            if older(other, item):
                self.waits[item].ahead += len(other.tokens)
                self.waits[item].num_ahead += 1
            elif other is not item:  # overtaken by a head start: what was behind it has to wait anew
                self.waits[other] = Waiting(
                    sum(len(ahead.tokens) for ahead in self.waits if older(ahead, other)),
                    sum(older(ahead, other) for ahead in self.waits),
                )
        self.pending.put([item], self.now)
        self.order.append(item)
        return item

    def take(self) -> list[Item[Caller]]:
        """The next batch, after which everything that `take` promises holds."""
        out = self.pending.take(self.budget, self.now, max_items=self.max_items)
        taken, expired = out.items, out.expired
        self._check_batch(taken)
        assert all(self.is_late(item) for item in expired)
        for item in [*taken, *expired]:
            assert item in self.waits, "an item left twice"
            del self.waits[item]
        self.left += [*taken, *expired]
        self._check_order(taken)
        if taken:
            self._check_bound()
        return taken

    def is_late(self, item: Item[Caller]) -> bool:
        return item.deadline is not None and self.now >= item.deadline

    def is_wanted(self, item: Item[Caller]) -> bool:
        return not item.owner.abandoned and not self.is_late(item)

    def longest(self) -> int:
        return max(len(item.tokens) for item in self.order)

    def num_classes(self) -> int:
        return len({item.length_class for item in self.order})

    def _check_batch(self, taken: list[Item[Caller]]) -> None:
        assert all(self.is_wanted(item) for item in taken)
        assert len(taken) <= (self.max_items or len(taken))
        if len(taken) > 1:
            assert sum(len(item.tokens) for item in taken) <= self.budget
        wanted = [item for item in self.waits if self.is_wanted(item)]
        if wanted:
            assert taken, "nothing was taken though something is wanted"
            assert not any(older(item, taken[0]) for item in wanted), "a batch starts with the oldest"

    def _check_order(self, taken: list[Item[Caller]]) -> None:
        for item in taken:
            class_mates = [other for other in self.waits if other.length_class == item.length_class]
            assert not any(older(other, item) and self.is_wanted(other) for other in class_mates), "first in, first out"

    def _check_bound(self) -> None:
        """The bound of `Pending`'s docstring for everything that still waits."""
        for item, wait in self.waits.items():
            wait.batches += 1
            bound = 4 * wait.ahead // self.budget
            if self.longest() <= self.budget:
                bound = min(bound, wait.ahead // (self.budget - self.longest() + 1))
            bound += self.num_classes()
            if self.max_items is not None:
                bound += wait.num_ahead // self.max_items
            if self.is_wanted(item):
                assert wait.batches < bound, f"an item still waits after {wait.batches} batches"


def older(item: Item[Caller], other: Item[Caller]) -> bool:
    return (item.rank, item.index) < (other.rank, other.index)


def arrivals(max_len: int = BUDGET) -> st.SearchStrategy[Arrival]:
    return st.builds(
        Arrival,
        length=lengths(max_len),
        priority=st.sampled_from(["normal", "normal", "high", "low"]),
        leaves=st.integers(0, 9).map(lambda n: n == 0),
        deadline=st.one_of(st.none(), st.none(), st.floats(0, 10)),
    )


def rounds_of(max_len: int) -> st.SearchStrategy[list[tuple[list[Arrival], float]]]:
    """For each round, the arrivals, and the seconds until the next batch is taken."""
    return st.lists(st.tuples(st.lists(arrivals(max_len), max_size=12), st.floats(0, 1)), min_size=1, max_size=20)


# The bound is the lower, the shorter the longest item is beside the budget; an item may also be longer than that.
MAX_LENGTHS = st.sampled_from([16, 64, 200, 300, BUDGET, 8 * BUDGET])
ROUNDS = MAX_LENGTHS.flatmap(rounds_of)
LIMITS = st.one_of(st.none(), st.integers(1, 6))


@given(ROUNDS, LIMITS)
def test_every_batch_keeps_the_budget_the_order_and_the_bound(
    rounds: list[tuple[list[Arrival], float]], max_items: int | None
) -> None:
    queue = Queue(max_items=max_items)
    for arriving, seconds in rounds:
        for arrival in arriving:
            queue.put(arrival)
        queue.now += seconds
        queue.take()
    while queue.take():
        pass


@given(ROUNDS, LIMITS)
def test_every_item_leaves_exactly_once(rounds: list[tuple[list[Arrival], float]], max_items: int | None) -> None:
    queue = Queue(max_items=max_items)
    for arriving, seconds in rounds:
        for arrival in arriving:
            queue.put(arrival)
        queue.now += seconds
        queue.take()
        assert queue.pending.num_tokens >= 0
    drained = queue.pending.drain()
    assert len(drained) == len(set(drained))
    assert not set(drained) & set(queue.left)
    dropped = set(queue.order) - set(queue.left) - set(drained)
    assert all(item.owner.abandoned for item in dropped)
    assert len(queue.pending) == queue.pending.num_tokens == 0
    assert queue.pending.take(BUDGET, queue.now) == Taken([], [])


@given(st.lists(arrivals(), max_size=30))
def test_the_waiting_items_are_counted(arriving: list[Arrival]) -> None:
    queue = Queue()
    for arrival in arriving:
        queue.put(arrival)
    assert len(queue.pending) == len(arriving)
    assert queue.pending.num_tokens == sum(arrival.length for arrival in arriving)
    taken = queue.take()
    gone = [*taken, *queue.left[len(taken) :]]
    abandoned = sum(arrival.leaves for arrival in arriving)
    assert len(arriving) - len(gone) - abandoned <= len(queue.pending) <= len(arriving) - len(gone)


@given(MAX_LENGTHS, LIMITS, st.data())
def test_no_flood_of_later_items_starves_one(max_len: int, max_items: int | None, data: st.DataObject) -> None:
    queue = Queue(max_items=max_items)
    for length in data.draw(st.lists(lengths(max_len), max_size=20)):
        queue.put(Arrival(length))
    item = queue.put(Arrival(data.draw(lengths(max_len))))
    flood = data.draw(st.lists(st.integers(max_len // 8, max_len), min_size=1, max_size=8))
    while item in queue.waits:  # `take` raises where the bound is broken, so this ends
        num_tokens = 0
        while num_tokens <= BUDGET:  # each of them newer, and more than a batch takes away
            for length in flood:
                queue.put(Arrival(length))
                num_tokens += length
        queue.take()
        queue.now += 1e-3


def test_no_bound_smaller_than_the_stated_one_would_do() -> None:
    queue = Queue(budget=600)
    for length in (1, 129, 301):  # one of each class; the last leaves one token less than the victim needs
        queue.put(Arrival(length))
    victim = queue.put(Arrival(300))
    for length in (128, 128, 128, 128, 87, 129, 129, 129, 84):  # what fills the batches of the first two
        queue.put(Arrival(length))
    bound = (1 + 129 + 301) // (600 - 301 + 1) + 3
    for _ in range(bound - 1):
        assert victim not in queue.take()
    assert victim in queue.take()


@given(st.lists(lengths(64), min_size=1, max_size=30), st.integers(1, 64))
def test_an_item_over_the_budget_has_a_batch_of_its_own(others: list[int], budget: int) -> None:
    pending: Pending[Caller] = Pending(budget)
    sizes = [*others, budget + 1]
    for index, length in enumerate(sizes):
        pending.put([Item(tokens_of_length(length), Caller(), index, rank=0.0)], now=0.0)
    batches = []
    while len(pending):
        batches.append([item.index for item in pending.take(budget, now=0.0).items])
    for batch in batches:
        assert len(batch) == 1 or sum(sizes[index] for index in batch) <= budget
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))


@pytest.mark.parametrize("deadline", [1.0, 1.5])
def test_an_item_is_late_from_its_deadline_on_and_returned_once(deadline: float) -> None:
    queue = Queue()
    queue.put(Arrival(10, deadline=deadline))
    late = queue.order[0]
    queue.now = deadline
    assert queue.pending.take(BUDGET, queue.now) == Taken([], [late])
    assert queue.pending.take(BUDGET, queue.now) == Taken([], [])


def test_an_item_in_time_runs() -> None:
    queue = Queue(now=0.999)
    item = queue.put(Arrival(10, deadline=1.0))
    assert queue.take() == [item]


def test_abandoned_and_late_items_do_not_use_up_a_batch() -> None:
    queue = Queue(max_items=1, now=5.0)
    queue.put(Arrival(BUDGET, leaves=True))
    queue.put(Arrival(BUDGET, deadline=1.0))
    wanted = queue.put(Arrival(BUDGET))
    assert queue.take() == [wanted]


def test_a_batch_starts_with_the_oldest_that_is_wanted() -> None:
    queue = Queue()
    queue.put(Arrival(10, leaves=True))  # its class would come first by this one's age
    long = queue.put(Arrival(300))
    short = queue.put(Arrival(10))
    assert queue.take() == [long, short]


def test_a_batch_fills_with_its_own_length_class_first() -> None:
    queue = Queue(budget=400)
    first, other, same = (queue.put(Arrival(length)) for length in (10, 300, 100))
    assert queue.take() == [first, same]
    assert queue.take() == [other]


def test_unused_budget_goes_to_the_oldest_item_of_another_length_class() -> None:
    queue = Queue()
    first, second, third = (queue.put(Arrival(length)) for length in (10, 300, 200))
    assert queue.take() == [first, second, third]


def test_a_high_priority_item_precedes_items_that_came_within_its_head_start() -> None:
    queue = Queue()
    normal = queue.put(Arrival(BUDGET))
    queue.now = 0.9
    high = queue.put(Arrival(BUDGET, "high"))
    assert [queue.take(), queue.take()] == [[high], [normal]]


@pytest.mark.parametrize(("victim", "flood"), [("normal", "high"), ("low", "high"), ("low", "normal")])
def test_a_flood_of_higher_priority_does_not_starve_a_lower_one(victim: str, flood: str) -> None:
    queue = Queue()
    item = queue.put(Arrival(BUDGET, victim))
    head_start = HEAD_START_S[flood] - HEAD_START_S[victim]
    assert head_start <= 2.0
    while item in queue.waits:
        queue.now += 0.25
        queue.put(Arrival(BUDGET, flood))
        queue.put(Arrival(BUDGET, flood))  # twice what leaves
        queue.take()
        assert queue.now <= 4 * head_start
    ahead = [other for other in queue.left if other.index > item.index]
    assert max(queue.order.index(other) for other in ahead) <= 2 * head_start / 0.25


@given(lengths(100_000))
def test_length_classes_are_0_to_128_then_twice_as_far_each(length: int) -> None:
    key = Item(tokens_of_length(length), Caller(), 0, rank=0.0).length_class
    assert length <= SHORTEST_CLASS * 2**key
    assert key == 0 or length > SHORTEST_CLASS * 2 ** (key - 1)


def test_drain_gives_everything_and_leaves_nothing() -> None:
    queue = Queue()
    items = {queue.put(Arrival(length)) for length in (1, 200, 500, 2)}
    assert set(queue.pending.drain()) == items
    assert not len(queue.pending)
    assert not queue.pending.num_tokens


# --- Requests of several items


def put_request(
    queue: Queue, *lengths_: int, leaves: bool = False, deadline: float | None = None
) -> list[Item[Caller]]:
    """One request of items of these lengths."""
    owner, first = Caller(leaves), len(queue.order)
    items = [Item(tokens_of_length(n), owner, first + i, queue.now, deadline) for i, n in enumerate(lengths_)]
    queue.pending.put(items, queue.now)
    queue.order += items
    return items


@given(st.lists(st.tuples(st.lists(lengths(2 * BUDGET), min_size=1, max_size=40), st.booleans()), max_size=8), LIMITS)
def test_every_item_of_a_large_request_leaves_exactly_once(
    requests_: list[tuple[list[int], bool]], max_items: int | None
) -> None:
    queue = Queue(max_items=max_items)
    for index, (sizes, is_late) in enumerate(requests_):
        put_request(queue, *sizes, leaves=index % 4 == 3, deadline=0.5 if is_late else None)
    seen: list[Item[Caller]] = []
    while len(queue.pending):
        assert 0 <= queue.pending.num_tokens_in_line <= queue.pending.num_tokens
        out = queue.pending.take(BUDGET, queue.now, max_items=max_items)
        assert len(out.items) <= 1 or sum(len(item.tokens) for item in out.items) <= BUDGET
        seen += [*out.items, *out.expired]
        queue.now += 0.2
    assert len(seen) == len(set(seen))
    assert {item for item in queue.order if not item.owner.abandoned} == set(seen)
    assert queue.pending.num_tokens == queue.pending.num_tokens_in_line == 0


def test_requests_take_turns_of_a_quantum() -> None:
    queue = Queue()
    first, second = (put_request(queue, *[128] * 12) for _ in range(2))
    small = put_request(queue, 128)
    batches = []
    while len(queue.pending):
        batches.append(queue.pending.take(BUDGET, queue.now).items)
        queue.now += 1.0
    owners = [{item.owner for item in batch} for batch in batches]
    assert owners[:2] == [{first[0].owner}, {second[0].owner}]
    assert small[0] in batches[2]
    assert [item for batch in batches for item in batch if item.owner is first[0].owner] == first
    assert {len(batch) for batch in batches[:-1]} == {BUDGET // 128}, "every batch but the last is full"


def test_a_request_alone_fills_every_batch() -> None:
    queue = Queue()
    put_request(queue, *[100] * 50)
    sizes = []
    while len(queue.pending):
        sizes.append(len(queue.pending.take(BUDGET, queue.now).items))
    assert sizes == [5] * 10


def test_the_items_of_a_request_run_in_the_order_of_their_lengths() -> None:
    queue = Queue()
    put_request(queue, *[16, 400] * 64)
    taken = []
    while len(queue.pending):
        taken.append({len(item.tokens) for item in queue.pending.take(BUDGET, queue.now).items})
    assert taken.count({16, 400}) <= 1


def test_what_follows_in_a_request_whose_client_left_is_gone_at_once() -> None:
    queue = Queue()
    (first, *_) = put_request(queue, *[128] * 100)
    assert queue.pending.take(BUDGET, queue.now).items[0] is first
    first.owner.abandoned = True
    assert queue.pending.take(BUDGET, queue.now) == Taken([], [])
    assert (queue.pending.num_items, queue.pending.num_tokens, queue.pending.num_tokens_in_line) == (0, 0, 0)
