"""A served model: admission, tokens, engine, result. What HTTP, Truss and the command line all call."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.engines.open import Opened, open_engine
from bei_core.errors import ConfigError, OverloadedError, UnhealthyError, ValidationError, WrongTaskError
from bei_core.metrics import Metrics, Timings
from bei_core.models.spec import ModelSpec
from bei_core.serving.runner import Runner
from bei_core.serving.turns import Turns
from bei_core.tasks import Encoding, Pair, Scoring, Task, Text, Tokens, TruncationSide, num_characters
from bei_core.text.templates import chosen_template
from bei_core.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# A model that gave a row this recently need not be asked again whether it answers.
_PROVEN_S = 5.0

# What is run before readiness, as lengths of the texts of a batch: the shapes that a lone request meets, a full one.
_WARM_UP = ([1], *([16 * step - 1] for step in range(1, 9)), [128] * 8)


@dataclass(frozen=True, slots=True)
class Reply(Generic[ResultT]):
    """A task's result and where the time went."""

    rows: ResultT
    timings: Timings


class Service:
    """One model, from `open` to `close`. `run` may be awaited on any event loop."""

    def __init__(
        self, opened: Opened, settings: Settings, metrics: Metrics | None = None, turns: Turns | None = None
    ) -> None:
        self.spec = opened.spec
        self.engine = opened.engine.info
        self.settings = settings
        self.revision = opened.manifest.revision
        self.name = settings.served_model_name or opened.manifest.source
        self.metrics = metrics or Metrics()
        self._opened = opened
        self.tokenizer = TextTokenizer(
            opened.tokenizer,
            max_seq_len=min(opened.spec.max_seq_len, settings.max_batch_tokens),
            vocab_size=opened.spec.vocab_size,
            lower_case=opened.spec.do_lower_case,
            num_workers=settings.tokenization_workers or 1,
        )
        self._runner = Runner(
            opened.engine,
            self.metrics,
            budget=min(settings.max_batch_tokens, opened.engine.info.batch_tokens),
            max_items=settings.max_batch_requests,
            turns=turns,
        )
        self._num_requests = 0
        self._proven_at = -_PROVEN_S
        self._draining = False
        self.template = chosen_template(settings.rerank_template, opened.spec.template)
        self._default_prompt = _default_prompt(opened.spec, settings)

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics | None = None, turns: Turns | None = None) -> Service:
        """A service that is ready: engine built or loaded, warmed up. Blocks; raises StartError."""
        service = cls(open_engine(settings), settings, metrics, turns)
        service.start()
        return service

    @classmethod
    def open_all(cls, settings: Settings, metrics: Metrics | None = None) -> list[Service]:
        """A ready service for each model of the settings, opened one after the other; several share the engine's time.

        Blocks; raises StartError, and then none is open.
        """
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

    def start(self) -> None:
        """Warms the engine up and lets requests in."""
        started = time.perf_counter()
        _warm_up(self._opened.engine)
        self._runner.start()
        self.metrics.watch_queue(lambda: self._runner.num_items)
        log.info(
            "ready to serve %s (%s), warmed up in %.2f s",
            self.name,
            self.engine.compute_type,
            time.perf_counter() - started,
        )

    async def run(
        self,
        task: Task[ResultT],
        *,
        deadline: float | None = None,
        priority: str = "normal",
        timings: Timings | None = None,
    ) -> Reply[ResultT]:
        """The task's result. `deadline` is on `time.monotonic`'s clock.

        Raises a RequestError: EmptyInputError, ValidationError, TokenizerError, OverloadedError, DeadlineExceededError,
        EngineError, UnhealthyError.
        """
        timings = timings or Timings()
        with self._admitted(task):
            tokens, owners = await self._encode(task, timings)
            ticket = await self._runner.submit(tokens, output=task.output, deadline=deadline, priority=priority)
            timings.queue_s, timings.inference_s = ticket.queue_s, ticket.inference_s
            self._proven_at = time.monotonic()
            rows = ticket.rows
            if owners is not None and len(owners) > len(task.inputs):
                rows = task.join(rows, owners, np.array([len(item) for item in tokens], np.float32))
            return Reply(task.finish(rows), timings)

    def encoding(
        self,
        *,
        truncate: bool | None = None,
        side: TruncationSide | None = None,
        prompt_name: str | None = None,
        chunk: bool = False,
        chunk_tokens: int | None = None,
    ) -> Encoding:
        """How to encode a request's texts, with the server's defaults. Raises ValidationError for an unknown prompt."""
        prompt = self._default_prompt
        if prompt_name is not None:
            if prompt_name not in self.spec.prompts:
                known = ", ".join(sorted(self.spec.prompts)) or "none"
                raise ValidationError(f"unknown prompt {prompt_name!r}; this model has: {known}", param="prompt_name")
            prompt = self.spec.prompts[prompt_name]
        if truncate is None:
            truncate = self.settings.auto_truncate
        return Encoding(truncate, side, prompt, self.spec.pools_prompt, chunk, chunk_tokens)

    @property
    def ranks(self) -> bool:
        """Whether the model scores a query and a document: one label, or a template and the two labels no and yes."""
        return self.kind == "reranker" or (self.template is not None and len(self.labels) == 2)

    def together(self, query: str, document: str, instruction: str | None = None) -> Text:
        """What a reranker reads of a query and a document: a prompt where it has a template, else a pair."""
        return Pair(query, document) if self.template is None else self.template.fill(query, document, instruction)

    @property
    def kind(self) -> str:
        """What the model does; see `ModelSpec.kind`."""
        return self.spec.kind

    def expect(self, *kinds: str) -> None:
        """Raises WrongTaskError unless the model is one of `kinds`."""
        if self.kind not in kinds:
            raise WrongTaskError(f"{self.name} is a model of kind {self.kind}; this needs {' or '.join(kinds)}")

    def scoring(self, *kinds: str) -> Scoring:
        """How logits become scores. Raises WrongTaskError unless the model is one of `kinds`."""
        self.expect(*kinds)
        return self.spec.classifier.scoring if self.spec.classifier else "none"

    @property
    def labels(self) -> Sequence[str]:
        """What the columns of a row of scores stand for; none of an embedding's."""
        return self.spec.classifier.labels if self.spec.classifier else ()

    def check_batch(self, inputs: Sequence[object]) -> None:
        """Raises ValidationError for more inputs than one request may have."""
        limit = self.settings.max_client_batch_size
        if len(inputs) > limit:
            raise ValidationError(f"batch size {len(inputs)} > maximum allowed batch size {limit}", param="inputs")

    async def check(self) -> None:
        """Raises UnhealthyError unless the model answers: lately, or now when asked."""
        if self._draining:
            raise UnhealthyError("the server is shutting down")
        if self._runner.broken is not None:
            raise UnhealthyError(self._runner.broken)
        if time.monotonic() - self._proven_at > _PROVEN_S:
            await self._runner.submit([_blank(1)], priority="high")
            self._proven_at = time.monotonic()

    def drain(self) -> None:
        """Answers 503 to health checks from here on; what is accepted is still run."""
        self._draining = True

    def close(self, timeout_s: float | None = 30.0) -> None:
        """Runs what was accepted, then frees the engine."""
        self._draining = True
        if self._runner.close(timeout_s):
            self._opened.close()
        self.tokenizer.close()

    @contextmanager
    def _admitted(self, task: Task[Any]) -> Iterator[None]:
        """Counts a request in and out.

        Raises OverloadedError before any work is done, ValidationError for too many inputs.
        """
        self.metrics.received(len(task.inputs))
        self.check_batch(task.inputs)
        if self._num_requests >= self.settings.max_concurrent_requests:
            raise OverloadedError(f"{self._num_requests} requests are in progress already; try again")
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    async def _encode(self, task: Task[Any], timings: Timings) -> tuple[list[Tokens], npt.NDArray[np.intp] | None]:
        """The tokens of a task and, where its texts may be split, whose they are.

        Raises OverloadedError where they do not fit in the queue.
        """
        started = time.perf_counter()
        how, owners = task.encoding, None
        if how.chunk or how.chunk_tokens is not None:
            tokens, owners = await self.tokenizer.encode_chunks(task.inputs, how)
        else:
            tokens = await self.tokenizer.encode(task.inputs, how)
        timings.tokenization_s = time.perf_counter() - started
        timings.num_inputs = len(task.inputs)
        timings.num_tokens = sum(map(len, tokens))
        timings.num_characters = sum(map(num_characters, task.inputs))
        waiting = self._runner.num_tokens
        if waiting and waiting + timings.num_tokens > self.settings.max_queue_tokens:
            raise OverloadedError(f"{waiting} tokens are waiting already; try again")
        return tokens, owners


def _default_prompt(spec: ModelSpec, settings: Settings) -> str | None:
    """The text that goes before each input where a request names no prompt. Raises ConfigError for an unknown name."""
    if settings.default_prompt is not None:
        return settings.default_prompt
    name = settings.default_prompt_name or spec.default_prompt_name
    if name is None:
        return None
    if settings.default_prompt_name and name not in spec.prompts:
        known = ", ".join(sorted(spec.prompts)) or "none"
        raise ConfigError(f"default_prompt_name {name!r} is not a prompt of the model; it has: {known}")
    return spec.prompts.get(name)


def _blank(length: int) -> Tokens:
    return Tokens(np.zeros(length, np.int32), np.zeros(length, np.int32))


def _warm_up(engine: Engine) -> None:
    """Runs batches of the shapes that come first, so that no request waits for a kernel to be made."""
    for lengths in _WARM_UP:
        engine.forward(Batch.pack([_blank(min(length, engine.info.max_seq_len)) for length in lengths]))
