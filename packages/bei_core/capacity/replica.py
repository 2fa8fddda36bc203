"""One server in simulated time: the real queue and admission control, with measured times in place of the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import simpy

from bei_core.bench.calibrate import Calibration
from bei_core.errors import OverloadedError
from bei_core.serving.admission import Admission, Running
from bei_core.serving.queue import Item, Pending
from bei_core.tasks import Tokens


@dataclass(slots=True, eq=False)
class Request:
    """One text on its way through the cluster."""

    arrived: float  # seconds
    num_tokens: int
    abandoned: bool = False  # no client waits for it: the queue drops it


class Replica:
    """A server: an event loop, which reads or answers one request at a time, and an engine, which runs one batch."""

    def __init__(
        self,
        env: simpy.Environment,
        calibration: Calibration,
        answered: Callable[[Request, float], None],
        refused: Callable[[Request], None],
        *,
        max_wait_s: float,
        phase_s: float = 0.0,
    ) -> None:
        """`phase_s` shifts the changes of the machine's speed, so that replicas are not slow at the same moments."""
        self.in_flight: dict[Request, None] = {}
        self.busy_s = 0.0  # seconds in which the engine computed
        self._env = env
        self._calibration = calibration
        self._answered = answered
        self._refused = refused
        budget = calibration.max_batch_tokens
        self._pending: Pending[Request] = Pending(budget)
        self._admission = Admission(self._pending, budget=budget, max_wait_s=max_wait_s)
        self._loop_free_at = env.now
        self._phase_s = phase_s
        self._wake = env.event()
        self._is_lost = False
        env.process(self._run())

    def send(self, request: Request) -> None:
        """Accepts a request now. It joins the queue when the event loop has read and tokenized it."""
        self.in_flight[request] = None
        read = self._env.timeout(self._loop(self._calibration.accept_s) - self._env.now)
        read.callbacks.append(lambda _: self._queue(request))

    def lose(self) -> list[Request]:
        """Stops the replica at once; returns the requests that it has not answered."""
        self._is_lost = True
        return list(self.in_flight)

    def _loop(self, seconds: float) -> float:
        """Returns the time at which the event loop finishes work that comes now and takes `seconds`."""
        self._loop_free_at = max(self._loop_free_at, self._env.now) + seconds
        return self._loop_free_at

    def _queue(self, request: Request) -> None:
        if self._is_lost:
            return
        now = self._env.now
        try:
            if self._pending.num_items:
                self._admission.check(request.num_tokens, now, "normal", None)
        except OverloadedError:
            del self.in_flight[request]
            return self._refused(request)
        self._pending.put([Item(tokens_of(request.num_tokens), request, 0, now)], now)
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Generator[Any, Any, None]:
        """The process of the engine: it takes a batch as soon as it is idle, as the server's runner does."""
        while not self._is_lost:
            if not self._pending.num_items:
                self._wake = self._env.event()
                yield self._wake
            taken = self._pending.take(self._admission.budget, self._env.now)
            seconds = self._calibration.batch_s(taken.num_tokens, self._env.now + self._phase_s)
            self._admission.running = Running(taken.items, taken.num_tokens, self._env.now)
            yield self._env.timeout(seconds)
            self._admission.running = Running()
            self._admission.rate.add(taken.num_tokens, seconds)
            self.busy_s += seconds
            yield self._env.timeout(self._calibration.after_batch_s(len(taken.items)))
            if not self._is_lost:
                self._answer([item.owner for item in taken.items])

    def _answer(self, requests: list[Request]) -> None:
        for request in requests:
            del self.in_flight[request]
            self._answered(request, self._loop(self._calibration.reply_s) + self._calibration.overhead_s)


@cache
def tokens_of(num_tokens: int) -> Tokens:
    """Returns an input of `num_tokens` tokens for the queue; all ids are 0."""
    ids = np.zeros(num_tokens, np.int32)
    return Tokens(ids, ids)
