"""A served model: admits tasks, tokenizes them, runs the engine, returns results. HTTP, Truss and the CLI call it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from bei_core.config.keys import check_given
from bei_core.config.settings import Settings
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened, open_engine
from bei_core.engines.process import EngineProcess
from bei_core.errors import EngineError, EngineUnavailableError, UnhealthyError
from bei_core.metrics import Metrics, Timings
from bei_core.serving.admission import overloaded
from bei_core.serving.runner import Runner
from bei_core.serving.served_model import describe
from bei_core.serving.turns import Turns
from bei_core.tasks import Outputs, Task, Tokens, asks_for, num_characters

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# Seconds. A health check sends a probe to the engine only if the engine returned no row within this time.
_PROVEN_S = 5.0

# How long a health check waits for the engine's answer to a probe.
_PROBE_WAIT_S = 0.05

# The warm-up batches, each a list of text lengths in tokens: first the shapes of single requests, then a full batch,
# with fewer tokens if the server's batches have fewer.
# Batches for which _WARM_UP_S are too short are left out: a kernel is created in milliseconds, but a large model runs
# it for seconds, and the server accepts no request until the warm-up ends.
_WARM_UP = ([15], [127], *([16 * step - 1] for step in range(2, 8)), [128] * 8)
_WARM_UP_S = 0.2


@dataclass(frozen=True, slots=True)
class Result(Generic[ResultT]):
    """The result of a task, with its timings and the tokens of its inputs."""

    rows: ResultT
    timings: Timings
    tokens: Sequence[Tokens] = ()


class Service:
    """One served model. `open` starts it, `close` ends it; `run` may be awaited on any event loop."""

    def __init__(
        self, opened: Opened, settings: Settings, metrics: Metrics | None = None, turns: Turns | None = None
    ) -> None:
        self.spec = opened.spec
        self.engine = opened.engine.info
        # Of a full batch, of which each copy of the model computes a part.
        limit = settings.max_batch_tokens * self.engine.num_replicas
        self.batch_tokens = min(limit, self.engine.batch_tokens)
        self.settings = settings
        self.revision = opened.manifest.revision
        self.metrics = metrics or Metrics()
        self._opened = opened
        self._process = opened.engine if isinstance(opened.engine, EngineProcess) else None
        self.tokenizer = opened.read_tokenizer(settings)
        self.model = describe(opened, settings, self.tokenizer)
        if self._process is not None:
            self._process.on_restart = self.metrics.engine_restarted
            self._process.name_model(self.model.name)
        self._runner = Runner(
            opened.engine,
            self.metrics,
            budget=self.batch_tokens,
            most=min(limit, self.engine.most_batch_tokens),
            max_items=settings.max_batch_requests,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_wait_s=settings.max_queue_wait_s,
            turns=turns,
            hang_s=settings.hang_timeout_s,
            kill_engine=None if self._process is None else self._process.kill,
            model=self.model.name,
        )
        self._operation = "embed" if self.model.kind.tei_type == "embedding" else "predict"
        self._num_requests = 0
        self._num_unqueued = 0  # inputs of requests that wait for their tokens; of each at most a batch, as in the line
        self._draining = False

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics | None = None, turns: Turns | None = None) -> Service:
        """Loads or builds the engine, warms it up and returns the ready service. Blocks; raises StartError."""
        opened = open_engine(settings)
        try:
            service = cls(opened, settings, metrics, turns)
            service.start()
        except BaseException as error:
            opened.close()
            if isinstance(error, UnhealthyError):
                raise EngineUnavailableError("the process of the engine ended in the warm-up; see the log") from error
            raise
        return service

    @classmethod
    def open_all(cls, settings: Settings, metrics: Metrics | None = None) -> list[Service]:
        """Opens the models of the settings one after the other and returns their services.

        Several models take turns on the processors. Blocks. Raises StartError, after it has closed the services that
        were already open.
        """
        check_given(settings.api_key)
        each = settings.each()
        if len(each) == 1:
            return [cls.open(each[0], metrics)]
        metrics, turns, services = metrics or Metrics(), Turns(), list[Service]()
        try:
            for one in each:
                services.append(cls.open(one, metrics, turns))
        except BaseException:
            for service in services:
                service.close()
            raise
        return services

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.model.name

    @property
    def crashed(self) -> Future[str]:
        """A future that gets the reason if the engine thread crashes. The process should then end and be restarted."""
        return self._runner.crashed

    def start(self) -> None:
        """Warms up the engine, then starts to accept requests."""
        started = time.perf_counter()
        engine, admission, batches = self._opened.engine, self._runner.admission, list[Batch]()
        for lengths in _WARM_UP:  # so that no request waits for the creation of kernels
            longest, count = min(engine.info.max_seq_len, self.batch_tokens), max(1, self.batch_tokens // lengths[0])
            batch = Batch.pack([_blank(min(length, longest)) for length in lengths[:count]])
            if time.perf_counter() - started + 2 * admission.expected_s(batch.num_tokens) > _WARM_UP_S:
                continue
            began = time.perf_counter()
            engine.forward(batch)  # creates the kernels, so the second run is timed, unless it would take long
            if time.perf_counter() - began < _WARM_UP_S / 2:
                began = time.perf_counter()
                engine.forward(batch)
            admission.rate.add(batch.num_tokens, time.perf_counter() - began)
            batches.append(batch)
        self.tokenizer.start()
        if self._process is not None:
            self._process.warm_up = batches
        self._runner.start()
        self.metrics.watch_queue(lambda: self._runner.num_items, self._wait_s)
        seconds = time.perf_counter() - started
        log.info("warmed up %s (%s) in %.2f s", self.name, self.engine.compute_type, seconds)

    async def run(
        self,
        task: Task[ResultT],
        *,
        deadline: float | None = None,
        priority: str = "normal",
        timings: Timings | None = None,
        reserve: Callable[[int], None] | None = None,
    ) -> Result[ResultT]:
        """Runs a task and returns its result. `deadline` is in seconds on the clock of `time.monotonic`.

        `reserve` is called with the bytes of a large result before it is computed, and may raise OverloadedError.
        Raises a RequestError: EmptyInputError, ValidationError, TokenizerError, OverloadedError, DeadlineExceededError,
        EngineError, UnhealthyError.
        """
        timings, count = timings or Timings(), len(task.inputs)
        if count > self.model.max_inputs:
            self.model.check_num_inputs(count)
        if self.is_busy:  # checked again, because the load may have changed while the request was received
            self.check_load(priority)
        self.metrics.received(count, self._operation)
        timings.is_counted = True
        self._num_requests += 1
        try:
            started = time.perf_counter()
            space = count if count == 1 else min(count, self._runner.admission.num_inputs_of_batch)
            self._num_unqueued += space
            try:
                tokens, owners = await self.tokenizer.tokenize(task.inputs, task.options, deadline)
            finally:
                self._num_unqueued -= space
            timings.tokenization_s = time.perf_counter() - started
            timings.operation = self._operation
            timings.num_inputs, timings.num_tokens = count, sum(len(item.ids) for item in tokens)
            timings.num_characters = sum(
                len(text) if isinstance(text, str) else num_characters(text) for text in task.inputs
            )
            if task.output != "rows" and asks_for(task.output, "tokens"):
                self.model.check_num_token_rows(timings.num_tokens)
            if reserve is not None and (len(tokens) > 1 or task.output != "rows"):
                reserve(self._num_bytes(task.output, timings.num_tokens, len(tokens)))
            ticket = await self._runner.submit(tokens, output=task.output, deadline=deadline, priority=priority)
        finally:
            self._num_requests -= 1
        timings.queue_s, timings.inference_s = ticket.queue_s, ticket.inference_s
        rows = ticket.rows
        if owners is not None and len(owners) > count:
            rows = task.join(rows, owners, np.array([len(item) for item in tokens], np.float32))
        result = Result(task.finish(rows), timings, tokens)
        timings.result_s = time.perf_counter() - started
        return result

    def _num_bytes(self, output: Outputs, num_tokens: int, num_rows: int) -> int:
        """Returns the memory of the rows f32[B, D] and f32[T, E] of a result, in bytes; sparse ones take little."""
        rows = num_rows * self.model.row_width if asks_for(output, "rows") else 0
        return 4 * (rows + (num_tokens * self.model.token_width if asks_for(output, "tokens") else 0))

    @property
    def is_busy(self) -> bool:
        """Whether the load is so high that the next request may be refused; `check_load` decides."""
        return self._runner.admission.has_line or self._num_requests >= self.settings.max_concurrent_requests

    def check_load(self, priority: str, num_coming: int | None = None, *, is_retry: bool = False) -> None:
        """Raises OverloadedError if the next request of this priority must be refused, whatever it contains.

        `num_coming` is given for a request that has just arrived: the number of requests that were accepted on arrival
        and whose task has not begun.
        """
        admission, now = self._runner.admission, time.monotonic()
        if self._num_requests >= self.settings.max_concurrent_requests:
            what = f"{self._num_requests} requests are in progress already"
            raise overloaded(what, "concurrency", self._wait_s())
        if num_coming is None:
            admission.check_line(now, priority)
        else:
            admission.check_arrival(now, priority, num_coming + self._num_unqueued, is_retry=is_retry)

    def accepted(self, *, is_retry: bool) -> None:
        """Counts a request that has arrived and that `check_load` did not refuse."""
        self._runner.admission.accepted(is_retry=is_retry)

    async def check(self) -> None:
        """Raises UnhealthyError if the model does not work. Sends a probe if the engine's last row is older than 5 s.

        A probe without an answer in time is not an error, because the engine may be busy. The watchdog detects a
        hanging engine by the time that its batch takes.
        """
        if self._draining:
            raise UnhealthyError("the server is shutting down")
        if self._runner.broken is not None:
            raise UnhealthyError(self._runner.broken)
        if self._process is not None and self._process.outage is not None:
            raise UnhealthyError(self._process.outage)
        began = time.monotonic()
        if began - self._runner.proven_at <= _PROVEN_S:
            return
        try:
            await asyncio.wait_for(self._runner.submit([_blank(1)], priority="high", is_probe=True), _PROBE_WAIT_S)
        except asyncio.TimeoutError:
            if self._runner.is_failing:
                raise UnhealthyError("the engine fails on everything; see the server's log") from None
        except EngineError as error:
            if self._runner.proven_at < began:  # no other input gave a row in the meantime
                raise UnhealthyError(f"the engine fails on everything: {error.message}") from None

    @staticmethod
    async def check_all(services: Sequence[Service]) -> None:
        """Checks every model of a server. Raises UnhealthyError if one of them does not work."""
        for service in services:
            await service.check()

    def _wait_s(self) -> float:
        return self._runner.admission.wait_s(time.monotonic())

    def drain(self) -> None:
        """Makes `check` fail from now on; requests are still answered."""
        self._draining = True

    def close(self, timeout_s: float | None = 30.0) -> bool:
        """Runs the accepted requests, then frees the engine; waits at most `timeout_s` seconds.

        Returns whether the engine's thread has ended. If it hangs, the engine is not freed.
        """
        self._draining = True
        ended = self._runner.close(timeout_s)
        if ended:
            self._opened.close()
        self.tokenizer.close()
        return ended


def _blank(length: int) -> Tokens:
    """Returns `length` tokens whose ids are all zero, for warm-up and probes."""
    return Tokens(np.zeros(length, np.int32), np.zeros(length, np.int32))
