"""The queueing policy: which encoded inputs run next. No thread, no clock, no engine: time and budget are arguments."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bei_core.tasks import Tokens

# Lengths up to this share a batch freely; each further class reaches twice as far. Rows of a batch are as long as its
# longest text, so a batch of one class does not make short texts pay for a long one's attention.
SHORTEST_CLASS = 128

# A priority counts as having arrived so much earlier or later (seconds). It is a head start, not a lane of its own, so
# nothing starves.
HEAD_START_S = {"high": 1.0, "normal": 0.0, "low": -1.0}


class Owner(Protocol):
    """Whoever waits for an item."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more."""
        ...


OwnerT = TypeVar("OwnerT", bound=Owner)


@dataclass(frozen=True, slots=True, eq=False)
class Item(Generic[OwnerT]):
    """One input on its way: its tokens, whose it is and which of that owner's rows."""

    tokens: Tokens
    owner: OwnerT
    index: int
    rank: float  # seconds on the clock of `take`: when it arrived, less its head start
    deadline: float | None = None  # likewise; from then on it is not run

    @property
    def length_class(self) -> int:
        """0 for up to 128 tokens, 1 up to 256, 2 up to 512, and so on."""
        return ((len(self.tokens) - 1) // SHORTEST_CLASS).bit_length()


@dataclass(frozen=True, slots=True)
class Taken(Generic[OwnerT]):
    """What `take` took out of the queue."""

    items: list[Item[OwnerT]]  # to run, oldest of the batch's length class first
    expired: list[Item[OwnerT]]  # past their deadline


class Pending(Generic[OwnerT]):
    """Inputs that wait.

    A batch starts with the oldest waiting item, is filled with items of its length class, oldest first, and what room
    is then left goes to the oldest of the others. So no item starves: with `W` tokens ahead of it when it arrives, at
    most `L` tokens in any item and `K` length classes, an item leaves within `W // (budget - L + 1) + K` batches; with
    `N` items ahead and `max_items` set, within `N // max_items` more. For a batch that leaves without it starts with an
    older item of some class, and either takes more than `budget - L` tokens or `max_items` items that are older, or
    takes all of that class that is older, which can happen once for each class but its own. An item that overtakes it
    by a head start begins the count anew.
    (tests/property/test_pending.py)
    """

    def __init__(self) -> None:
        self._classes: dict[int, list[tuple[float, int, Item[OwnerT]]]] = {}
        self._sequence = 0
        self._num_items = 0
        self._num_tokens = 0

    def __len__(self) -> int:
        return self._num_items

    @property
    def num_tokens(self) -> int:
        """Tokens that wait, abandoned ones included until their turn comes."""
        return self._num_tokens

    def put(self, item: Item[OwnerT]) -> None:
        """Adds an item behind those of the same rank."""
        heap = self._classes.setdefault(item.length_class, [])
        heapq.heappush(heap, (item.rank, self._sequence, item))
        self._sequence += 1
        self._num_items += 1
        self._num_tokens += len(item.tokens)

    def take(self, budget: int, now: float, *, max_items: int | None = None) -> Taken[OwnerT]:
        """The next batch: at most `budget` tokens and `max_items` items; an item over the budget rides alone.

        Empty only where nothing that waits is still wanted and in time.
        """
        taken: Taken[OwnerT] = Taken([], [])
        room = budget
        for key in self._by_age(now, taken.expired):
            while (item := self._head(key, now, taken.expired)) is not None:
                if taken.items and (len(item.tokens) > room or len(taken.items) == max_items):
                    break
                self._pop(key)
                taken.items.append(item)
                room -= len(item.tokens)
        return taken

    def drain(self) -> list[Item[OwnerT]]:
        """Everything that waits, which then no longer does."""
        return [self._pop(key) for key, heap in self._classes.items() for _ in range(len(heap))]

    def _by_age(self, now: float, expired: list[Item[OwnerT]]) -> list[int]:
        """Length classes that have an item to run, the one with the oldest first."""
        waiting = [key for key in self._classes if self._head(key, now, expired) is not None]
        return sorted(waiting, key=lambda key: self._classes[key][0][:2])

    def _head(self, key: int, now: float, expired: list[Item[OwnerT]]) -> Item[OwnerT] | None:
        """The oldest item of a class that is still wanted; drops abandoned ones, moves late ones to `expired`."""
        heap = self._classes[key]
        while heap:
            item = heap[0][2]
            if item.owner.abandoned:
                self._pop(key)
            elif item.deadline is not None and now >= item.deadline:
                expired.append(self._pop(key))
            else:
                return item
        return None

    def _pop(self, key: int) -> Item[OwnerT]:
        item = heapq.heappop(self._classes[key])[2]
        self._num_items -= 1
        self._num_tokens -= len(item.tokens)
        return item
