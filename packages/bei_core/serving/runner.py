"""The engine thread: takes a batch from the queue, runs it, returns the rows. It never waits to fill a batch."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch, distinct
from bei_core.errors import DeadlineExceededError, EngineError, RequestError, UnhealthyError
from bei_core.logs import ModelLog
from bei_core.metrics import Metrics
from bei_core.serving.admission import Admission, Running
from bei_core.serving.queue import HEAD_START_S, Item, Pending
from bei_core.serving.turns import Turns
from bei_core.tasks import Output, Outputs, Rows, Sparse, TokenRows, Tokens, asks_for

log = logging.getLogger(__name__)

_WATCH_S = 1.0  # how often the watchdog checks for a hang
_HANGING_S = 1.0  # how long `close` waits for an engine that hangs
_STOPPED_S = 10.0  # if nothing has checked for so long, the process was stopped, and its engine with it

# A batch counts as hanging if it takes longer than _HANG_FACTOR times the expected time and longer than
# `hang_timeout_s`. It loses its turn on the processors after _HANG_FACTOR times the expected time, too, but not before
# _LEAST_TURN_S seconds.
_HANG_FACTOR = 10.0
_LEAST_TURN_S = 1.0

# How many requests are answered in one turn of the event loop, so that a health check waits for few of them.
_MAX_RESOLVED = 16


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in the runner. Its future is settled once: when its last row is computed, or at its first error."""

    future: asyncio.Future[None]
    output: Outputs
    rows: Any  # f32[N, D], or a list of N outputs, as `output` says; filled after each batch
    waiting: int  # number of rows not computed yet
    queued_at: float
    abandoned: bool = False  # the client disconnected or an item failed: its other items do not run
    error: RequestError | None = None
    queue_s: float = 0.0  # seconds from submission until its first item ran
    inference_s: float = 0.0  # total seconds of the batches that contained its items

    def expire(self) -> None:
        """Fails the ticket with DeadlineExceededError. Call it at the deadline, on the future's event loop."""
        self.error = self.error or DeadlineExceededError("the request's deadline passed before it was computed")
        self.abandoned = True
        self.resolve()

    def resolve(self) -> None:
        """Settles the ticket's future, unless it is settled. Call it on the event loop of the future."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(None)


class Runner:
    """Owns the engine and the one thread that calls it. `submit` may be awaited on any event loop."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        budget: int,
        most: int = 0,
        max_items: int | None = None,
        max_queue_tokens: int | None = None,
        max_queue_wait_s: float = math.inf,
        turns: Turns | None = None,
        hang_s: float = 120.0,
        kill_engine: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        model: str = "model",
    ) -> None:
        """`model` is the model's name, with which each line of the log begins."""
        self._log = ModelLog(log, model)
        self._engine = engine
        self._metrics = metrics
        self._max_items = max_items
        self._turns = turns
        self._hang_s = hang_s
        self._kill_engine = kill_engine  # ends the running batch with UnhealthyError; None: nothing can end it
        self._clock = clock
        self._pending: Pending[Ticket] = Pending(budget, shares_prefixes=engine.info.shares_prefixes)
        self.admission = Admission(
            self._pending, budget=budget, most=most, max_wait_s=max_queue_wait_s, max_tokens=max_queue_tokens
        )
        self.proven_at = -math.inf  # when the engine last returned a finite row
        self._failed_at = -math.inf  # when it last failed on an input
        self._num_computed = 0  # tokens that the engine has computed of the running batch
        self.crashed: Future[str] = Future()  # gets the reason if the engine thread ends by an exception
        self._wake = threading.Condition()
        self._closing = False
        self._broken: str | None = None
        self._checked_at = self._resumed_at = -math.inf  # when `broken` was last read; when it was after a long pause
        self._thread = threading.Thread(target=self._run, name="bei-engine", daemon=True)

    def start(self) -> None:
        """Starts the engine thread and the watchdog."""
        self._thread.start()
        threading.Thread(target=self._watch, name="bei-watchdog", daemon=True).start()

    async def submit(
        self,
        tokens: Sequence[Tokens],
        *,
        output: Outputs = "rows",
        deadline: float | None = None,
        priority: str = "normal",
        is_probe: bool = False,
    ) -> Ticket:
        """Queues the inputs, waits for their outputs and returns the ticket.

        `ticket.rows` is f32[N, D], or a list of N outputs as `output` says, in the order of `tokens`. Raises
        OverloadedError if the wait would be too long (a probe is never refused), UnhealthyError if the engine is not
        usable, DeadlineExceededError at the deadline, or the first error of an item. If the call is cancelled,
        items that have not started do not run.
        """
        if not tokens:
            raise ValueError("this is a bug: a request without inputs would wait for ever")
        now = self._clock()
        dense = output == "rows"
        rows = np.empty((len(tokens), self._engine.info.row_width), np.float32) if dense else [None] * len(tokens)
        loop, timer, queued = asyncio.get_running_loop(), None, None
        ticket = Ticket(loop.create_future(), output, rows, len(tokens), now)
        rank = now - HEAD_START_S[priority]
        if deadline is not None:
            if deadline <= now:
                raise DeadlineExceededError("the request's deadline passed before it was accepted")
            timer = loop.call_later(deadline - now, ticket.expire)
        try:
            with self._wake:
                if self.broken or self._closing:
                    raise UnhealthyError(self._broken or "the server is shutting down")
                if self._pending.num_items and not is_probe:
                    self.admission.check(sum(map(len, tokens)), now, priority, deadline, len(tokens))
                items = [Item(item, ticket, i, rank, deadline) for i, item in enumerate(tokens)]
                queued = self._pending.put(items, now)
                self._wake.notify()
            await ticket.future
        finally:
            ticket.abandoned = True
            if ticket.waiting and queued is not None:  # other requests must not wait for its items
                with self._wake:
                    self._pending.leave(queued)
            if timer is not None:
                timer.cancel()
        return ticket

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the queue."""
        return self._pending.num_tokens

    @property
    def num_items(self) -> int:
        """The number of inputs in the queue."""
        return self._pending.num_items

    @property
    def is_failing(self) -> bool:
        """Whether the engine has returned no finite row since it last failed on an input."""
        return self._failed_at > self.proven_at

    @property
    def broken(self) -> str | None:
        """The reason why the engine is not usable; None if it is usable. Also ends or gives up a hanging batch."""
        running, now = self.admission.running, self._clock()
        if now - self._checked_at > _STOPPED_S:  # a batch has its whole time again
            self._resumed_at = now
        self._checked_at = now
        if self._broken is None and running.started is not None:
            seconds = now - max(running.started, self._resumed_at)
            if seconds > self._hang_s:
                limit = max(self._hang_s, _HANG_FACTOR * self.admission.compute_s(running.num_tokens))
                if seconds > limit and self._kill_engine is not None:
                    self._log.error("the engine has not answered for %.0f s; its process is killed", limit)
                    self._kill_engine()
                elif seconds > limit:
                    self._give_up(f"the engine has not answered for {limit:.0f} s")
        return self._broken

    def close(self, timeout_s: float | None = None) -> bool:
        """Runs all accepted items, then ends the engine thread. Returns whether the thread ended within `timeout_s`.

        It waits at most _HANGING_S seconds for a thread that hangs.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s if self._broken is None else _HANGING_S)
        ended = not self._thread.is_alive()
        if not ended or self._pending.num_items:  # items stay in the queue if the thread was never started
            self._give_up("the server stopped before the engine was done")
        return ended

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not self._pending.num_items and not self._closing:
                        self._wake.wait()
                    if not self._pending.num_items or self._broken is not None:
                        break
                self._step()
        except BaseException as fault:  # also SystemExit: without this thread, queued items would wait for ever
            self._log.exception("the engine thread failed; the server has to be started again")
            why = f"the engine thread failed ({type(fault).__name__}); see the server's log"
            self._give_up(why)
            self.crashed.set_result(why)
        self._log.debug("engine thread ended")

    def _watch(self) -> None:
        """Runs the watchdog, which fails the waiting requests if the engine hangs, even without health checks."""
        while self._thread.is_alive() and self.broken is None:
            self._thread.join(_WATCH_S)

    def _step(self) -> None:
        """Takes and runs one batch. If several models share the processors, waits for this model's turn first."""
        began = self._clock()
        with self._turns.taken() if self._turns is not None else nullcontext():
            started = self._clock()
            with self._wake:  # under one lock, so that `_give_up` finds every item in the queue or in `running`
                taken = self._pending.take(
                    self.admission.budget,
                    started,
                    max_items=self._max_items,
                    expected_s=self.admission.expected_s,
                )
                self.admission.running = Running(taken.items, taken.num_tokens, started)
            if self._turns is not None:
                self._turns.limit(max(_LEAST_TURN_S, _HANG_FACTOR * self.admission.compute_s(taken.num_tokens)))
            try:
                if taken.expired:
                    self._fail(taken.expired, DeadlineExceededError("the request's deadline passed while it waited"))
                if taken.items:
                    self._num_computed = 0
                    self._forward(taken.items)
                    if self.proven_at >= started:  # a batch that failed as a whole says nothing about the speed
                        seconds = self._clock() - started
                        self.admission.rate.add(taken.num_tokens, seconds, self._num_computed, started - began)
            except Exception:
                self._log.exception("this is a bug: a batch of %d failed outside the engine", len(taken.items))
                self._fail(taken.items, EngineError("the engine failed; see the server's log"))
            self.admission.running = Running()  # not reached after a BaseException: `_give_up` needs the items

    def _forward(self, items: Sequence[Item[Ticket]]) -> None:
        """Runs a batch and settles its items. If it fails, runs its halves, so that only the faulty items fail."""
        inputs, places = [item.tokens for item in items], [0]
        if len(items) > 1:
            inputs, places = distinct(inputs)
        batch = Batch.pack(inputs)
        started = self._clock()
        try:
            outputs = {item.owner.output for item in items}
            if outputs != {"rows"} and any(map(self._needs_tokens, outputs)):
                rows, token_rows = self._engine.forward_tokens(batch)
                parts = np.split(token_rows, batch.cu_seqlens[1:-1])
            else:
                rows, parts = self._engine.forward(batch), None
        except UnhealthyError as error:  # the engine's process has ended, and a new one gets none of these items
            return self._fail(items, error)
        except Exception:
            if len(items) > 1:
                self._log.warning("a batch of %d failed; running its halves", len(items), exc_info=True)
                self._forward(items[: len(items) // 2])
                return self._forward(items[len(items) // 2 :])
            self._log.exception("the engine failed on an input of %d tokens", batch.num_tokens)
            self._failed_at = self._clock()
            return self._fail(items, EngineError("the engine failed on this input; see the server's log"))
        num_tokens, num_shared = batch.num_tokens, self._engine.num_shared_tokens()
        self._metrics.batch(len(items), num_tokens, self._clock() - started, self._engine.padding_share())
        self._num_computed += num_tokens - num_shared
        if num_shared:
            self._metrics.shared(num_shared)
        if len(inputs) < len(items):
            self._metrics.deduplicated(len(items) - len(inputs))
            rows, parts = rows[places], parts and [parts[place] for place in places]
        self._settle(items, rows, parts, started)

    def _settle(
        self, items: Sequence[Item[Ticket]], rows: Rows, parts: Sequence[TokenRows] | None, started: float
    ) -> None:
        """Stores each item's output in its ticket. Only the items with NaN or infinity in their output fail."""
        if rows.shape != (len(items), self._engine.info.row_width):
            raise ValueError(f"this is a bug: the engine gave {rows.shape} for {len(items)} items")
        now = self._clock()
        spent = now - started
        finite: list[bool] = np.all(np.isfinite(rows), axis=1).tolist()
        if parts is not None:
            finite = [good and bool(np.isfinite(part).all()) for good, part in zip(finite, parts, strict=True)]
        if any(finite):
            self.proven_at = now
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
                ticket.abandoned = True  # set here, so that the next batch already skips its other items
            if ticket.output == "rows":
                ticket.rows[item.index] = row
            else:
                part = None if parts is None else parts[place]
                ticket.rows[item.index] = self._output(ticket.output, row, part, item.tokens)
            ticket.waiting -= 1
            if ticket.waiting == 0 or not good:
                done.append(ticket)
        self._tell(done)

    def _needs_tokens(self, outputs: Outputs) -> bool:
        """Whether one of the outputs is computed from the rows of tokens."""
        of_tokens: tuple[Output, ...] = (
            ("tokens", "weights", "sparse") if self._engine.info.weighs_terms else ("tokens",)
        )
        return any(asks_for(outputs, output) for output in of_tokens)

    def _output(self, outputs: Outputs, row: Rows, part: TokenRows | None, tokens: Tokens) -> Any:  # noqa: ANN401
        """Returns the outputs of an input: from its row f32[D], and the rows of its tokens f32[n, E] or [n, E + 1]."""
        if isinstance(outputs, tuple):
            return tuple(self._output(output, row, part, tokens) for output in outputs)
        if outputs == "rows" or part is None:
            return row if outputs == "rows" else Sparse.of(row)
        if not self._engine.info.weighs_terms:
            return Sparse.of(row) if outputs == "sparse" else part
        if outputs == "sparse":
            return Sparse.of_tokens(tokens.ids, part[:, -1])
        return part[:, :-1] if outputs == "tokens" else part[:, -1]

    def _fail(self, items: Sequence[Item[Ticket]], error: RequestError) -> None:
        for item in items:
            item.owner.error = item.owner.error or copy.copy(error)  # a copy, so that each has its own traceback
            item.owner.abandoned = True
        self._tell([item.owner for item in items])

    def _tell(self, tickets: Sequence[Ticket]) -> None:
        """Settles tickets on their event loops; wakes up each event loop once."""
        loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
        for ticket in tickets:
            loops.setdefault(ticket.future.get_loop(), []).append(ticket)
        for loop, settled in loops.items():
            try:
                if len(settled) == 1:
                    loop.call_soon_threadsafe(settled[0].resolve)
                else:
                    loop.call_soon_threadsafe(_resolve, settled)
            except RuntimeError:  # the loop is closed
                self._log.debug("dropped %d results of a closed event loop", len(settled))

    def _give_up(self, why: str) -> None:
        """Marks the engine as unusable. Items of the running batch fail with 424, items in the queue with 503."""
        with self._wake:
            if self._broken is not None:
                return
            self._broken = why
            held, waiting = self.admission.running.items, self._pending.drain()
            self._wake.notify()
        self._log.error("%s; failing %d items", why, len(held) + len(waiting))
        self._fail(held, EngineError(why))
        self._fail(waiting, UnhealthyError(why))


def _resolve(tickets: Sequence[Ticket]) -> None:
    """Settles the first tickets now and the others in the next turns of the event loop, which reads in between."""
    for ticket in tickets[:_MAX_RESOLVED]:
        ticket.resolve()
    if len(tickets) > _MAX_RESOLVED:
        asyncio.get_running_loop().call_soon(_resolve, tickets[_MAX_RESOLVED:])
