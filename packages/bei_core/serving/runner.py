"""The engine thread: takes what waits, runs it, hands the rows back. It never sleeps to let a batch grow."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.errors import DeadlineExceededError, EngineError, RequestError, UnhealthyError
from bei_core.metrics import Metrics
from bei_core.serving.queue import HEAD_START_S, Item, Pending
from bei_core.serving.turns import Turns
from bei_core.tasks import Output, Rows, Sparse, TokenRows, Tokens

log = logging.getLogger(__name__)

_WATCH_S = 1.0  # how often a hang is looked for


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place: it is settled once, when its last row is there or at its first error."""

    future: asyncio.Future[None]
    output: Output
    rows: Any  # f32[N, D], or a list of what `output` says, filled as batches come back
    waiting: int  # rows still to come
    queued_at: float
    abandoned: bool = False  # nobody waits any more: the caller left, or an item failed
    error: RequestError | None = None
    queue_s: float = 0.0  # until its first item ran
    inference_s: float = 0.0  # in the batches that held its items

    def resolve(self) -> None:
        """Tells the caller; runs on the caller's event loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(None)


@dataclass(slots=True)
class _Current:
    """The batch on the engine."""

    items: Sequence[Item[Ticket]] = field(default_factory=tuple)
    started: float | None = None


class Runner:
    """Owns the engine and the one thread that calls it. `submit` may be awaited on any event loop."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        budget: int,
        max_items: int | None = None,
        turns: Turns | None = None,
        hang_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._budget = max(budget, engine.info.max_seq_len)
        self._max_items = max_items
        self._turns = turns
        self._hang_s = hang_s
        self._clock = clock
        self._pending: Pending[Ticket] = Pending()
        self._wake = threading.Condition()
        self._current = _Current()
        self._closing = False
        self._broken: str | None = None
        self._thread = threading.Thread(target=self._run, name="bei-engine", daemon=True)

    def start(self) -> None:
        """Starts the engine thread, and one that notices when it hangs."""
        self._thread.start()
        threading.Thread(target=self._watch, name="bei-watchdog", daemon=True).start()

    async def submit(
        self,
        tokens: Sequence[Tokens],
        *,
        output: Output = "rows",
        deadline: float | None = None,
        priority: str = "normal",
    ) -> Ticket:
        """The settled ticket, whose `rows` are f32[N, D], or N times what `output` says, in the order of `tokens`.

        Raises the first error of any item. Cancelling the call drops what has not run yet.
        """
        if not tokens:
            raise ValueError("this is a bug: a request without inputs would wait for ever")
        now = self._clock()
        loop = asyncio.get_running_loop()
        dense = output == "rows"
        rows = np.empty((len(tokens), self._engine.info.row_width), np.float32) if dense else [None] * len(tokens)
        ticket = Ticket(loop.create_future(), output, rows, len(tokens), now)
        rank = now - HEAD_START_S[priority]
        with self._wake:
            if self.broken or self._closing:
                raise UnhealthyError(self._broken or "the server is shutting down")
            for index, item in enumerate(tokens):
                self._pending.put(Item(item, ticket, index, rank, deadline))
            self._wake.notify()
        try:
            await ticket.future
        finally:
            ticket.abandoned = True
        return ticket

    @property
    def num_tokens(self) -> int:
        """Tokens that wait."""
        return self._pending.num_tokens

    @property
    def num_items(self) -> int:
        """Inputs that wait."""
        return len(self._pending)

    @property
    def broken(self) -> str | None:
        """Why the engine is not usable, if it is not."""
        started = self._current.started
        if self._broken is None and started is not None and self._clock() - started > self._hang_s:
            self._give_up(f"the engine has not answered for {self._hang_s:.0f} s")
        return self._broken

    def close(self, timeout_s: float | None = None) -> bool:
        """Runs what was accepted, then ends the thread; whether that happened within `timeout_s`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        ended = not self._thread.is_alive()
        if not ended or len(self._pending):  # or never started
            self._give_up("the server stopped before the engine was done")
        return ended

    def _run(self) -> None:
        try:
            while self._wait():
                self._step()
        except Exception:  # nobody would take what waits any more
            log.exception("this is a bug: the engine thread failed outside a batch")
            self._give_up("the engine thread failed; see the server's log")
        log.debug("engine thread ended")

    def _watch(self) -> None:
        """Fails what waits for an engine that hangs, though nobody asks for its health."""
        while self._thread.is_alive() and self.broken is None:
            self._thread.join(_WATCH_S)

    def _wait(self) -> bool:
        """Blocks until there is work; false when there is none and no more will come."""
        with self._wake:
            while not len(self._pending) and not self._closing:
                self._wake.wait()
            return bool(len(self._pending)) and self._broken is None

    def _step(self) -> None:
        """Runs a batch, in a turn where engines share the processors; what comes meanwhile is in time for it."""
        if self._turns is None:
            return self._take_and_run()
        try:
            with self._turns.taken(self):
                self._take_and_run()
        except UnhealthyError as fault:  # of the one whose turn it was
            self._give_up(fault.message)

    def _take_and_run(self) -> None:
        started = self._clock()
        with self._wake:  # as one, so that `_give_up` finds every item either waiting or here
            taken = self._pending.take(self._budget, started, max_items=self._max_items)
            items = taken.items
            self._current = _Current(items, started)
        self._fail(taken.expired, DeadlineExceededError("the request's deadline passed while it waited"))
        try:
            if items:
                self._forward(items)
        except Exception:
            log.exception("this is a bug: a batch of %d failed outside the engine", len(items))
            self._fail(items, EngineError("the engine failed; see the server's log"))
        finally:
            self._current = _Current()

    def _forward(self, items: Sequence[Item[Ticket]]) -> None:
        """Runs items and settles each; a batch that fails is halved until only the items at fault have failed."""
        batch = Batch.pack([item.tokens for item in items])
        started = self._clock()
        try:
            if any(item.owner.output == "tokens" for item in items):
                rows, token_rows = self._engine.forward_tokens(batch)
                parts = np.split(token_rows, batch.cu_seqlens[1:-1])
            else:
                rows, parts = self._engine.forward(batch), None
        except Exception:
            if len(items) > 1:
                log.warning("a batch of %d failed; running its halves", len(items), exc_info=True)
                self._forward(items[: len(items) // 2])
                return self._forward(items[len(items) // 2 :])
            log.exception("the engine failed on an item of %d tokens", batch.num_tokens)
            return self._fail(items, EngineError("the engine failed on this input; see the server's log"))
        self._metrics.batch(len(batch), batch.num_tokens, self._clock() - started, self._engine.padding_share())
        self._settle(items, rows, parts, started)

    def _settle(
        self, items: Sequence[Item[Ticket]], rows: Rows, parts: Sequence[TokenRows] | None, started: float
    ) -> None:
        """Gives each item its output; an item whose output is not finite fails alone."""
        if rows.shape != (len(items), self._engine.info.row_width):
            raise ValueError(f"this is a bug: the engine gave {rows.shape} for {len(items)} items")
        spent = self._clock() - started
        finite: list[bool] = np.all(np.isfinite(rows), axis=1).tolist()
        if parts is not None:
            finite = [good and bool(np.isfinite(part).all()) for good, part in zip(finite, parts, strict=True)]
        last: Ticket | None = None
        done = []
        for place, (item, row, good) in enumerate(zip(items, rows, finite, strict=True)):
            ticket = item.owner
            if ticket is not last:
                last = ticket
                ticket.queue_s = ticket.queue_s or started - ticket.queued_at
                ticket.inference_s += spent
            if not good:
                ticket.error = EngineError("the model gave NaN or infinity for this input")
                ticket.abandoned = True  # before the next batch, which its other items need not be in
            if ticket.output == "rows":
                ticket.rows[item.index] = row
            else:
                ticket.rows[item.index] = Sparse.of(row) if parts is None or ticket.output == "sparse" else parts[place]
            ticket.waiting -= 1
            if ticket.waiting == 0 or not good:
                done.append(ticket)
        self._tell(done)

    def _fail(self, items: Sequence[Item[Ticket]], error: RequestError) -> None:
        for item in items:
            item.owner.error = item.owner.error or copy.copy(error)  # a traceback of its own
            item.owner.abandoned = True
        self._tell([item.owner for item in items])

    def _tell(self, tickets: Sequence[Ticket]) -> None:
        """Wakes each event loop once, whatever the number of its tickets."""
        loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
        for ticket in tickets:
            loops.setdefault(ticket.future.get_loop(), []).append(ticket)
        for loop, settled in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, settled)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                log.debug("dropped %d results of a closed event loop", len(settled))

    def _give_up(self, why: str) -> None:
        """Marks the engine unusable and fails what it holds; what only waited gets a 503, to be tried elsewhere."""
        with self._wake:
            if self._broken is not None:
                return
            self._broken = why
            held, waiting = self._current.items, self._pending.drain()
            self._wake.notify()
        log.error("%s; failing %d items", why, len(held) + len(waiting))
        self._fail(held, EngineError(why))
        self._fail(waiting, UnhealthyError(why))


def _resolve(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.resolve()
