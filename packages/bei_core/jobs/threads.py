"""`Threads`: the threads of a job that call the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")


class Threads:
    """The threads that call the engine, as many as may call it at a time."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "bei-engine")
        self._num_threads, self.is_closed = num_threads, False

    def run(self, left: deque[ItemT], function: Callable[[ItemT], None]) -> list[Future[None]]:
        """Calls a function with each item, which is removed before. The items of the calls before come first.

        A thread takes one item after the other, and none waits for each item: Python runs slowly between two batches,
        which use all of the processor's caches. If the function fails, the items that are left are removed.
        """

        def work() -> None:
            try:
                while (item := _first(left)) is not None and not self.is_closed:
                    function(item)
            except BaseException:
                left.clear()
                raise

        return [self._pool.submit(work) for _ in range(self._num_threads)]

    def close(self) -> None:
        """Ends the threads. Items that are left are not computed."""
        self.is_closed = True
        self._pool.shutdown(cancel_futures=True)


def _first(items: deque[ItemT]) -> ItemT | None:
    """Removes and returns the first item; None if there is none."""
    try:
        return items.popleft()
    except IndexError:
        return None
