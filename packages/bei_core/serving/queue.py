"""The queueing policy: which tokenized inputs run next, and how long they take. Pure policy: time is an argument."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Generic, Protocol, TypeAlias, TypeVar

from bei_core.engines.prefixes import BatchCost
from bei_core.tasks import Tokens

# The most tokens of an input in length class 0; the limit doubles with each further class. All rows of a batch are as
# long as its longest text, so a short text in a batch with a long one would cost as much as the long one.
SHORTEST_CLASS = 128

# Seconds by priority: an item is treated as if it had arrived this much earlier. All priorities share one queue, so no
# item starves.
HEAD_START_S = {"high": 1.0, "normal": 0.0, "low": -1.0}

# The most items of clients who left that stay in the line, beside twice as many as the others have in the queue. To
# remove each of them at once would take too long.
_MAX_LEFT = 64

# The number of recent batches of each size that `ServiceRate` is fitted to. A size is a range of token counts, from one
# power of two to the next.
_NUM_BATCHES = 8

# The number of recent batches whose largest share of computed tokens is expected of the next ones.
_NUM_SHARES = 16

# The most recent batches of at least _MIN_RECENT tokens tell whether the machine is slower or faster now than the fit
# says. Smaller ones do not count, because most of their time is fixed.
_NUM_RECENT = 5
_MIN_RECENT = SHORTEST_CLASS // 2

# While small requests wait, large requests together get this share of the engine.
_LARGE_SHARE = 0.5

# A batch's time per token is limited to this multiple of the median, because the process may have been stopped or have
# waited for a disk.
_MAX_SURPRISE = 10.0


class Owner(Protocol):
    """The request that an item belongs to."""

    @property
    def abandoned(self) -> bool:
        """Whether the client has disconnected or another item of the request has failed."""
        ...


OwnerT = TypeVar("OwnerT", bound=Owner)


@dataclass(frozen=True, slots=True, eq=False)
class Item(Generic[OwnerT]):
    """One tokenized input, with the request that it belongs to and the index of its output there."""

    tokens: Tokens
    owner: OwnerT
    index: int
    rank: float  # time of arrival minus head start, in seconds on the clock of `take`; the lowest runs first
    deadline: float | None = None  # on the same clock; the item does not run at or after it

    @property
    def length_class(self) -> int:
        """The length class: 0 for up to 128 tokens, 1 up to 256, 2 up to 512, and so on."""
        return ((len(self.tokens.ids) - 1) // SHORTEST_CLASS).bit_length()


@dataclass(frozen=True, slots=True)
class Taken(Generic[OwnerT]):
    """The items that `take` removed from the queue."""

    items: list[Item[OwnerT]]  # the batch: the length class of the oldest item first; within a class, the oldest first
    expired: list[Item[OwnerT]]  # past their deadline

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the batch."""
        return sum(len(item.tokens.ids) for item in self.items)


@dataclass(slots=True, eq=False)
class Queued(Generic[OwnerT]):
    """What the queue holds of one request."""

    arrived: float
    num_items: int
    num_tokens: int
    num_tokens_in_line: int = 0
    num_tokens_of_turn: int = 0  # of the items that joined the line last
    following: list[Item[OwnerT]] = field(default_factory=list)  # not in the line yet; the next one is the last
    last: Item[OwnerT] | None = None  # the item in the line that the next items follow when it leaves
    is_counted: bool = True  # False: the client has left, and the queue's numbers do not include this request


_Batches: TypeAlias = tuple[tuple[int, float], ...]  # number of tokens and seconds of each

_Entry: TypeAlias = "tuple[float, int, Item[OwnerT], Queued[OwnerT]]"  # of the line: rank, sequence number, item


class Pending(Generic[OwnerT]):
    """The queue of inputs.

    The queue consists of a line and of items that wait to join it. A request has at most about `quantum` tokens in the
    line at a time, or one item if that is longer: its turn. Its next items join the end of the line when these have
    left it (deficit round robin, Shreedhar and Varghese 1995). So a small request waits for one turn of each large
    request, and large requests advance equally fast. If the line is long, the next items do not join its end but
    precede it: the ranks of the turns of all large requests together are at least the time of a turn's tokens /
    _LARGE_SHARE apart, so that a flood of small requests and the large ones each get half of the engine. That begins
    with the arrival of a large request: its first items wait for the line, and meanwhile `num_tokens_ahead` leaves the
    places of its next ones free.

    A batch starts with the oldest item of the line, continues with items of the same length class, oldest first, and is
    then filled with the oldest items of other classes. So no item starves: if there are `W` tokens ahead of an item
    when it joins the line or that precede it later, no item has more than `L` tokens, and there are `K` length classes,
    the item leaves within `W // (budget - L + 1) + K` batches if `L` is at most the budget, and for any `L` within
    `4 * W // budget + K`, if the budget is at least 2 * SHORTEST_CLASS; with `max_items` set and `N` such items, within
    `N // max_items` more. What precedes it later is limited too, because each turn gets a higher rank than the last.

    Proof: a batch that leaves without it starts with an older item of some class. Either the batch takes more than
    `budget - L` tokens or `max_items` items that are older, or it takes all older items of that class, which can happen
    once for each other class. In a class whose items have at most half as many tokens as the budget, more than
    `budget - L` is more than half of the budget; in every other class, one item has more than a quarter of the budget.
    If another item overtakes it by a head start, the count begins again.
    (tests/property/test_queue.py, test_turns_of_large_requests.py)
    """

    def __init__(self, quantum: int, *, shares_prefixes: bool = False) -> None:
        """`shares_prefixes` says that the engine does (`EngineInfo`)."""
        self._quantum, self._shares_prefixes = quantum, shares_prefixes
        self._classes: dict[int, list[_Entry[OwnerT]]] = {}
        self._sequence = 0
        self.num_items = 0  # in the queue, without those of clients who left
        self.num_tokens = 0  # tokens of these items
        self.num_tokens_in_line = 0  # tokens of the items that are in the line
        self._turn = 0.0  # the rank of the last items of large requests that joined the line, or of the first request
        self._turn_s = math.inf  # seconds from this rank to that of the next ones, after a turn of a quantum

    def __len__(self) -> int:
        return self.num_items

    @property
    def num_tokens_outside(self) -> int:
        """The tokens of large requests that are not in the line yet."""
        return self.num_tokens - self.num_tokens_in_line

    def num_tokens_ahead(self, now: float) -> int:
        """Returns the number of tokens that run before an item that is queued now: of the line, and what joins it."""
        num_turns = max(0.0, now - self._turn - self._turn_s) / self._turn_s
        return self.num_tokens_in_line + min(self.num_tokens_outside, math.ceil(num_turns * self._quantum))

    def put(self, items: Sequence[Item[OwnerT]], now: float) -> Queued[OwnerT]:
        """Adds the items of one request, after the items of the same rank. Returns the argument for `leave`."""
        if not self.num_tokens_outside:
            self._turn = now
        num_tokens = sum([len(item.tokens.ids) for item in items])
        queued: Queued[OwnerT] = Queued(now, len(items), num_tokens)
        self.num_items += len(items)
        self.num_tokens += num_tokens
        if len(items) > 1:
            queued.following = sorted(items, key=lambda item: item.length_class)[::-1]
            self._enter(queued, now)
            return queued
        heap = self._classes.setdefault(items[0].length_class, [])
        heapq.heappush(heap, (items[0].rank, self._sequence, items[0], queued))
        self._sequence += 1
        queued.num_tokens_in_line = num_tokens
        self.num_tokens_in_line += num_tokens
        return queued

    def leave(self, queued: Queued[OwnerT]) -> None:
        """Excludes a request from all numbers, because its client has left. Its items are removed soon."""
        self._count(queued, -queued.num_items, -queued.num_tokens, -queued.num_tokens_in_line)
        queued.is_counted = False
        queued.following.clear()
        if not self.num_items:  # then no batch is taken, which would remove them
            self._classes.clear()
        elif sum(map(len, self._classes.values())) > 2 * self.num_items + _MAX_LEFT:
            for heap in self._classes.values():
                heap[:] = [entry for entry in heap if entry[3].is_counted]
                heapq.heapify(heap)

    def take(
        self,
        budget: int,
        now: float,
        *,
        max_items: int | None = None,
        expected_s: Callable[[int], float] = lambda num_tokens: math.inf,
    ) -> Taken[OwnerT]:
        """Removes and returns the next batch: at most `budget` tokens and `max_items` items.

        `expected_s` returns the expected seconds for a number of tokens; if they are not known (0 or infinity), the
        next items of large requests always join the end of the line.
        If the engine shares prefixes, the budget counts the first tokens that items share once (`BatchCost`). An item
        with more tokens than `budget` makes a batch of its own. The batch is empty only if every item in the
        queue is abandoned or past its deadline.
        """
        taken: Taken[OwnerT] = Taken([], [])
        cost = BatchCost()
        if self.num_tokens_outside:
            self._turn_s = (expected_s(self._quantum) or math.inf) / _LARGE_SHARE
        classes = [key for key in self._classes if self._head(key, now, taken.expired) is not None]
        for key in sorted(classes, key=lambda key: self._classes[key][0][:2]):  # the class with the oldest item first
            while (item := self._head(key, now, taken.expired)) is not None:
                ids = item.tokens.ids
                with_item = cost.plus(ids) if self._shares_prefixes else BatchCost(cost.num_tokens + len(ids))
                if taken.items and (with_item.num_tokens > budget or len(taken.items) == max_items):
                    break
                cost = with_item
                rank, _, _, queued = heapq.heappop(self._classes[key])
                queued.num_items -= 1
                queued.num_tokens -= len(ids)
                queued.num_tokens_in_line -= len(ids)
                taken.items.append(item)
                if item is queued.last:
                    place = rank + queued.arrived - item.rank  # what arrived before is served
                    turn_s = self._turn_s * queued.num_tokens_of_turn / self._quantum
                    self._turn = min(now, max(self._turn, place) + turn_s)
                    self._enter(queued, self._turn)
        self.num_items -= len(taken.items)
        self.num_tokens -= taken.num_tokens
        self.num_tokens_in_line -= taken.num_tokens
        return taken

    def drain(self) -> list[Item[OwnerT]]:
        """Removes and returns all items."""
        return [item for key, heap in self._classes.items() for _ in range(len(heap)) for item in self._drop(key)]

    def _count(self, queued: Queued[OwnerT], num_items: int, num_tokens: int, num_tokens_in_line: int = 0) -> None:
        """Adds to the numbers of a request and of the queue."""
        if queued.is_counted:
            queued.num_items += num_items
            queued.num_tokens += num_tokens
            queued.num_tokens_in_line += num_tokens_in_line
            self.num_items += num_items
            self.num_tokens += num_tokens
            self.num_tokens_in_line += num_tokens_in_line

    def _enter(self, queued: Queued[OwnerT], now: float) -> None:
        """Moves the next items of a request, about `quantum` tokens, to the place of items that arrive at `now`."""
        space, following = self._quantum, queued.following
        while following and space > 0:
            item = following.pop()
            space -= len(item.tokens.ids)
            entry = (item.rank + (now - queued.arrived), self._sequence, item, queued)
            heapq.heappush(self._classes.setdefault(item.length_class, []), entry)
            self._sequence += 1
        queued.last = item if following else None
        queued.num_tokens_of_turn = self._quantum - space
        self._count(queued, 0, 0, queued.num_tokens_of_turn)

    def _head(self, key: int, now: float, expired: list[Item[OwnerT]]) -> Item[OwnerT] | None:
        """Returns the oldest item of a length class that can run; None if there is none.

        Removes abandoned items, and moves items past their deadline to `expired`.
        """
        heap = self._classes[key]
        while heap:
            item = heap[0][2]
            if item.owner.abandoned:
                self._drop(key)
            elif item.deadline is not None and now >= item.deadline:
                expired += self._drop(key)
            else:
                return item
        return None

    def _drop(self, key: int) -> list[Item[OwnerT]]:
        """Removes and returns the oldest item of a length class, and the items of its request that would follow it."""
        _, _, item, queued = heapq.heappop(self._classes[key])
        items = [item, *(queued.following if item is queued.last else ())]
        num_tokens = sum(len(each.tokens.ids) for each in items)
        self._count(queued, -len(items), -num_tokens, -len(item.tokens.ids))
        return items


class ServiceRate:
    """Estimates how long batches take: a fixed time and a time per token, fitted to the last batches of each size.

    The time is that of the tokens that were computed: repeated texts of a batch are computed once, and so are shared
    prefixes. Of the tokens that wait, the largest share of the last batches is expected to be computed.

    One thread calls `add`; any thread may read meanwhile. So what is read is replaced, never changed in place.
    """

    def __init__(self) -> None:
        self._batches: list[_Batches] = [()] * 64  # by size: the tokens of each batch and its seconds
        self._recent: _Batches = ()
        self._shares: tuple[float, ...] = (1.0,)  # computed tokens of all tokens of a batch
        self._is_fitted = True
        self._fitted = (0.0, 0.0)  # seconds of a batch and of a token
        self._recent_per_token_s = 0.0
        self._turn_waits: tuple[float, ...] = ()
        self.turn_wait_s = 0.0  # of a batch, for the turns of other models: the median of the last batches

    def add(self, num_tokens: int, seconds: float, num_computed: int | None = None, turn_wait_s: float = 0.0) -> None:
        """Records that a batch of `num_tokens` tokens took `seconds`; `num_computed` (default: all) were computed.

        `turn_wait_s` is the time that it waited for its turn before, which is no part of `seconds`.
        """
        self._turn_waits = (*self._turn_waits[1 - _NUM_RECENT :], turn_wait_s)
        self.turn_wait_s = median(self._turn_waits)
        num_computed = num_tokens if num_computed is None else num_computed
        self._shares = (*self._shares[1 - _NUM_SHARES :], num_computed / num_tokens)
        batch, size = (num_computed, seconds), num_computed.bit_length()
        self._batches[size] = (*self._batches[size][1 - _NUM_BATCHES :], batch)
        if num_computed >= _MIN_RECENT:
            self._recent = (*self._recent[1 - _NUM_RECENT :], batch)
            self._recent_per_token_s = median(each_s / num for num, each_s in self._recent)
        self._is_fitted = False

    def seconds(self, num_tokens: int, budget: int) -> float:
        """Returns the expected seconds for `num_tokens` tokens in batches of `budget`; 0 before the first batch."""
        if not self._is_fitted:
            self._is_fitted = True  # before the batches are read: a batch that ends meanwhile is fitted next time
            self._fitted = _fit([batch for size in self._batches for batch in size], self._recent)
        per_batch_s, per_token_s = self._fitted
        return -(-num_tokens // budget) * per_batch_s + num_tokens * max(self._shares) * per_token_s

    @property
    def tokens_per_s(self) -> float:
        """The number of tokens per second in the most recent batches; infinity before the first batch.

        Small batches take longer per token, so the result is too low after them. Larger batches correct it, also after
        a time in which the machine was slow.
        """
        return 1 / self._recent_per_token_s if self._recent_per_token_s else math.inf


def _fit(batches: Sequence[tuple[int, float]], recent: _Batches) -> tuple[float, float]:
    """Returns the seconds of a batch and of a token: fitted by least squares, both at least 0, and scaled to `recent`.

    Each batch is its number of tokens and its seconds.
    """
    typical = median(seconds / num_tokens for num_tokens, seconds in batches)
    tokens = [num_tokens for num_tokens, _ in batches]
    times = [min(seconds, _MAX_SURPRISE * typical * num_tokens) for num_tokens, seconds in batches]
    mean_tokens, mean_time = fmean(tokens), fmean(times)
    spread = sum((num_tokens - mean_tokens) ** 2 for num_tokens in tokens)
    slope = mean_time / mean_tokens
    if spread:
        products = ((n - mean_tokens) * time for n, time in zip(tokens, times, strict=True))
        slope = min(max(sum(products) / spread, 0.0), slope)
    fixed = mean_time - slope * mean_tokens
    factor = median([seconds / (fixed + slope * num_tokens) for num_tokens, seconds in recent] or [1.0])
    return factor * fixed, factor * slope
