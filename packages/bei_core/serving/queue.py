"""The queueing policy: which encoded inputs run next. It knows no thread, clock or engine; time is an argument."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bei_core.tasks import Tokens

# Class 0 holds lengths up to this, each further class lengths up to twice those of the class before. The rows of a
# batch are as long as its longest text, so short texts in a batch with a long one would cost as much as the long one.
SHORTEST_CLASS = 128

# An item of this priority counts as having arrived so many seconds earlier. All priorities share one queue, so no item
# starves.
HEAD_START_S = {"high": 1.0, "normal": 0.0, "low": -1.0}


class Owner(Protocol):
    """The request that an item belongs to."""

    @property
    def abandoned(self) -> bool:
        """Whether the client has left or another item of the request has failed."""
        ...


OwnerT = TypeVar("OwnerT", bound=Owner)


@dataclass(frozen=True, slots=True, eq=False)
class Item(Generic[OwnerT]):
    """One input: its tokens, and the request and row that its output is for."""

    tokens: Tokens
    owner: OwnerT
    index: int
    rank: float  # arrival minus head start, in seconds on the clock of `take`
    deadline: float | None = None  # on the same clock; the item does not run at or after it

    @property
    def length_class(self) -> int:
        """0 for up to 128 tokens, 1 up to 256, 2 up to 512, and so on."""
        return ((len(self.tokens) - 1) // SHORTEST_CLASS).bit_length()


@dataclass(frozen=True, slots=True)
class Taken(Generic[OwnerT]):
    """What `take` removed from the queue."""

    items: list[Item[OwnerT]]  # the batch: its own length class first, oldest first
    expired: list[Item[OwnerT]]  # past their deadline


class Pending(Generic[OwnerT]):
    """The queue of inputs.

    A batch starts with the oldest item, continues with items of the same length class, oldest first, and is then
    filled with the oldest items of other classes. So no item starves: if there are `W` tokens ahead of an item when it
    arrives, no item has more than `L` tokens, and there are `K` length classes, the item leaves within
    `W // (budget - L + 1) + K` batches; with `max_items` set and `N` items ahead, within `N // max_items` more.

    Proof: a batch that leaves without it starts with an older item of some class. Either the batch takes more than
    `budget - L` tokens or `max_items` items that are older, or it takes all older items of that class, which can happen
    once for each other class. If another item overtakes it by a head start, the count begins again.
    (tests/property/test_queue.py)
    """

    def __init__(self) -> None:
        self._classes: dict[int, list[tuple[float, int, Item[OwnerT]]]] = {}
        self._sequence = 0
        self.num_items = 0  # in the queue
        self.num_tokens = 0  # of these items; abandoned ones count until `take` meets them

    def __len__(self) -> int:
        return self.num_items

    def put(self, item: Item[OwnerT]) -> None:
        """Adds an item behind those of the same rank."""
        heap = self._classes.setdefault(item.length_class, [])
        heapq.heappush(heap, (item.rank, self._sequence, item))
        self._sequence += 1
        self.num_items += 1
        self.num_tokens += len(item.tokens)

    def take(self, budget: int, now: float, *, max_items: int | None = None) -> Taken[OwnerT]:
        """The next batch: at most `budget` tokens and `max_items` items; an item over the budget runs alone.

        Empty only if every item in the queue is abandoned or past its deadline.
        """
        taken: Taken[OwnerT] = Taken([], [])
        classes = [key for key in self._classes if self._head(key, now, taken.expired) is not None]
        for key in sorted(classes, key=lambda key: self._classes[key][0][:2]):  # the one with the oldest item first
            while (item := self._head(key, now, taken.expired)) is not None:
                if taken.items and (len(item.tokens) > budget or len(taken.items) == max_items):
                    break
                self._pop(key)
                taken.items.append(item)
                budget -= len(item.tokens)
        return taken

    def drain(self) -> list[Item[OwnerT]]:
        """Removes and returns all items."""
        return [self._pop(key) for key, heap in self._classes.items() for _ in range(len(heap))]

    def _head(self, key: int, now: float, expired: list[Item[OwnerT]]) -> Item[OwnerT] | None:
        """The oldest item of a class to run; removes abandoned items, moves those past their deadline to `expired`."""
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
        self.num_items -= 1
        self.num_tokens -= len(item.tokens)
        return item
