"""Computes the output columns of one part from its texts: tokenize, run in batches, finish."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch
from bei_core.errors import BeiError, ConfigError, RequestError, UnhealthyError
from bei_core.http.schemas.vectors import Precision, quantize
from bei_core.jobs.batches import plan_batches
from bei_core.jobs.options import JobOptions, OutputDtype, Task
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.tasks import Classify, Embed, Rank, Rows, Sparse, Text, Tokens, check_dimensions
from bei_core.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

# The CPU engine may compile graphs for lone texts of at most so many tokens (engines/openvino/lone.py).
_LONE_TOKENS = 128

Columns: TypeAlias = dict[str, pa.Array]

# The kinds of models that can do each job. `auto` means the first job whose first kind is the kind of the model.
_KINDS: Mapping[Task, tuple[Kind, ...]] = {
    "embed": (Kind.EMBEDDING,),
    "sparse": (Kind.SPARSE,),
    "tokens": (Kind.LATE_INTERACTION, Kind.EMBEDDING),
    "classify": (Kind.CLASSIFIER,),
    "rerank": (Kind.RERANKER,),
}

_PRECISIONS: Mapping[OutputDtype, tuple[Precision, pa.DataType]] = {
    "float32": ("float", pa.float32()),
    "float16": ("float16", pa.float16()),
    "int8": ("int8", pa.int8()),
    "bit": ("ubinary", pa.uint8()),
}


@dataclass(slots=True)
class Encoded:
    """The tokens of a part. `rejected` has the reason for each row that cannot be encoded, by row number."""

    tokens: list[Tokens] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # row number of each entry of `tokens`, ascending
    rejected: dict[int, str] = field(default_factory=dict)
    num_padded: float = 0.0  # tokens that the engine computed for the entries, padding included

    def add(self, row: int, tokens: Sequence[Tokens]) -> None:
        """Adds the tokens of a row, one entry per chunk."""
        self.tokens += tokens
        self.owners += [row] * len(tokens)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all entries, without padding."""
        return sum(len(item.ids) for item in self.tokens)


class Limits(NamedTuple):
    """The limits of a batch, by the names of their settings. The engine's copies share a batch."""

    max_batch_tokens: int
    max_batch_requests: int | None


class Computed(NamedTuple):
    """The outputs of a batch: for each of its entries what the engine gave, or the reason why there is nothing."""

    outputs: list[Any]
    num_padded: float  # tokens that the engine computed, padding included


class Started(NamedTuple):
    """A part that the engine computes."""

    encoded: Encoded
    batches: list[list[int]]  # entries of `encoded`, by index
    running: deque[Future[Computed]]  # of each batch; `finish` takes them


class Worker:
    """One engine that computes parts. `encode`, `start` and `finish` may each run on a thread, part after part."""

    def __init__(
        self, engine: Engine, tokenizer: TextTokenizer, model: ServedModel, settings: Settings, options: JobOptions
    ) -> None:
        """Raises ConfigError if the model cannot do the job."""
        self.task = _task_of(model, options)
        self._engine, self._tokenizer, self._model, self._options = engine, tokenizer, model, options
        self._encode_options = replace(
            model.default_options, chunk=options.chunk, chunk_tokens=options.chunk_tokens, spans=options.chunk
        )
        self.limits = Limits(settings.max_batch_tokens * engine.info.num_replicas, settings.max_batch_requests)

    def columns(self) -> Columns:
        """Returns the output columns of no rows: their names and types."""
        return self.finish(Started(Encoded(), [], deque()))[1]

    def encode(self, texts: Sequence[Sequence[object]]) -> Encoded:
        """Returns the tokens of the rows of a part. `texts` has one list per text column."""
        encoded = Encoded(rejected=_reasons_against(texts))
        rows = [row for row in range(len(texts[0])) if row not in encoded.rejected]
        values = zip(*([column[row] for row in rows] for column in texts), strict=True)
        inputs = [self._model.pair(*map(str, each)) if len(each) > 1 else str(each[0]) for each in values]
        for row, tokens in zip(rows, self._tokens(inputs), strict=True):
            if isinstance(tokens, str):
                encoded.rejected[row] = tokens
            else:
                encoded.add(row, tokens)
        return encoded

    def open_pool(self) -> ThreadPoolExecutor:
        """Returns the threads that call the engine, as many as may call it at a time."""
        return ThreadPoolExecutor(self._engine.info.num_callers, "bei-engine")

    def start(self, encoded: Encoded, pool: Executor) -> Started:
        """Gives the batches of a part to the threads of `open_pool`. They run after those of the parts before."""
        lengths = [len(item.ids) for item in encoded.tokens]
        batches = list(plan_batches(lengths, self._engine.info.batch_tokens, *self.limits))
        inputs = ([encoded.tokens[index] for index in batch] for batch in batches)
        return Started(encoded, batches, deque(pool.submit(self._forward, each) for each in inputs))

    def finish(self, started: Started) -> tuple[Encoded, Columns]:
        """Waits for a part. Returns the entries that have an output row, and the output columns, a row per entry.

        All entries of an input row are rejected if the engine fails on one of them, or gives NaN or infinity for it.
        """
        encoded, num_padded = started.encoded, 0.0
        outputs = list[Any]([None] * len(encoded.tokens))
        for batch in started.batches:
            found = started.running.popleft().result()  # not kept, so that the outputs are freed
            num_padded += found.num_padded
            for index, output in zip(batch, found.outputs, strict=True):
                outputs[index] = output
        rejected = dict(encoded.rejected)
        for owner, output in zip(encoded.owners, outputs, strict=True):
            if isinstance(output, str):
                rejected[owner] = output
        kept = [index for index, owner in enumerate(encoded.owners) if owner not in rejected]
        tokens, owners = [encoded.tokens[index] for index in kept], [encoded.owners[index] for index in kept]
        done = Encoded(tokens, owners, rejected, num_padded)
        columns = _span_columns(done) if self._options.chunk else {}
        return done, {**columns, **self._finished([outputs[index] for index in kept])}

    def _tokens(self, inputs: list[Text]) -> Iterator[Sequence[Tokens] | str]:
        """Yields the tokens of each input, one entry per chunk, or the reason why it cannot be encoded (a str)."""
        if not self._options.chunk and inputs:
            try:
                yield from ([tokens] for tokens in self._tokenizer.encode_now(inputs, self._encode_options))
                return
            except RequestError:
                log.debug("a part has a text that cannot be encoded; encoding its texts one by one", exc_info=True)
        for each in inputs:
            try:
                if self._options.chunk:
                    yield self._tokenizer.chunk_now([each], self._encode_options)[0]
                else:
                    yield self._tokenizer.encode_now([each], self._encode_options)
            except RequestError as error:
                yield str(error)

    def _forward(self, items: Sequence[Tokens]) -> Computed:
        """Returns one output per item: its row, its terms or the rows of its tokens; if it has none, the reason."""
        # During a job, the CPU engine may begin to run batches of one short text by another graph, which gives other
        # bits. So such a text is run twice in one batch.
        is_lone = len(items) == 1 and len(items[0].ids) <= _LONE_TOKENS
        batch = Batch.pack([*items, *items] if is_lone else items)
        of_tokens = self.task == "tokens" or (self.task == "sparse" and self._engine.info.weighs_terms)
        try:
            if of_tokens:
                _, rows = self._engine.forward_tokens(batch)
                outputs = np.split(rows, batch.cu_seqlens[1:-1])
            else:
                rows = self._engine.forward(batch)
                outputs = list(rows)
        except UnhealthyError as error:  # while its process is started again, it would fail on every text
            raise BeiError("the process of the engine has ended; see the log, and start the job again") from error
        except Exception:
            log.warning("the engine failed on a batch of %d; running its halves", len(items), exc_info=True)
            if len(items) == 1:
                self._check_engine()
                return Computed(["the engine failed on this text; see the log"], 0.0)
            halves = [self._forward(half) for half in (items[: len(items) // 2], items[len(items) // 2 :])]
            return Computed(halves[0].outputs + halves[1].outputs, halves[0].num_padded + halves[1].num_padded)
        is_finite = np.isfinite(rows).all()
        found = [
            self._output(output, item)
            if is_finite or np.isfinite(output).all()
            else "the model gave NaN or infinity for this text"
            for output, item in zip(outputs, items, strict=False)
        ]
        return Computed(found, batch.num_tokens / (1 - self._engine.padding_share()))

    def _check_engine(self) -> None:
        """Raises BeiError if the engine fails on a short text too. A broken engine must not reject all rows."""
        probe = self._tokenizer.encode_now(["."], self._encode_options)
        try:
            self._engine.forward(Batch.pack([*probe, *probe]))
        except Exception as error:
            raise BeiError(
                f"the engine fails on every text ({error}); fix the cause and start the job again"
            ) from error

    def _output(self, output: Rows, item: Tokens) -> Any:  # noqa: ANN401
        """Returns the output of a text from its row f32[D], or from the rows of its tokens f32[n, E]."""
        if self.task == "sparse":
            return Sparse.of_tokens(item.ids, output[:, -1]) if output.ndim == 2 else Sparse.of(output)
        return output[:, : self._model.token_width] if self.task == "tokens" else output

    def _finished(self, outputs: list[Any]) -> Columns:
        """Returns the columns that the job computes, from one output per entry."""
        if self.task == "tokens":
            vectors = self._model.embed_all([], self._encode_options).finish(outputs)
            return {"vectors": _token_vectors(vectors, self._model.token_width)}
        if self.task == "sparse":
            return _sparse_columns(self._model.embed_sparse([], self._encode_options).finish(outputs))
        rows = np.array(outputs, np.float32).reshape(len(outputs), self._engine.info.row_width)
        if self.task == "embed":
            return {"embedding": self._embeddings(rows)}
        if self.task == "rerank":
            ranks = Rank([], self._encode_options, self._model.rank_scoring).finish(rows)
            return {"score": pa.array([score for _, score in sorted(ranks)], pa.float32())}
        finished = Classify([], self._encode_options, self._model.scoring).finish(rows)
        return _label_columns(finished, self._model.labels)

    def _embeddings(self, rows: Rows) -> pa.Array:
        options = self._options
        finished = Embed([], normalize=options.normalize, dimensions=options.dimensions).finish(rows)
        precision, dtype = _PRECISIONS[options.output_dtype]
        return _fixed_lists(quantize(finished, precision), dtype)


def _task_of(model: ServedModel, options: JobOptions) -> Task:
    """Returns the job to do; for `auto`, the one that fits the model. Raises ConfigError if the model cannot do it."""
    able = [task for task, kinds in _KINDS.items() if not model.roles.isdisjoint(kinds)]
    task = options.job
    if task == "auto":
        task = next((task for task, kinds in _KINDS.items() if kinds[0] == model.kind), "auto")
    if task not in able or (task == "tokens" and not model.token_width):
        can = ", ".join(able) or "none of the jobs"
        raise ConfigError(f"{model.name} is a model of kind {model.kind}; it can do: {can}")
    options.check_for(task)
    if options.chunk and task not in {"embed", "sparse"}:
        raise ConfigError("chunk is for embeddings; a score of a part of a text is not the score of the text")
    if options.dimensions is not None:
        try:
            check_dimensions(options.dimensions, model.row_width)
        except RequestError as error:
            raise ConfigError(str(error)) from error
    return task


def _reasons_against(texts: Sequence[Sequence[object]]) -> dict[int, str]:
    """Returns the reason for each row that is rejected, by row number. `texts` has one list per text column."""
    if all(all(column) and set(map(type, column)) == {str} for column in texts):  # the usual case, 2 us a row faster
        return {}
    reasons = enumerate(map(_reason_against, zip(*texts, strict=True)))
    return {row: reason for row, reason in reasons if reason}


def _reason_against(values: Sequence[object]) -> str:
    """Returns why a row is rejected; "" if its values are texts that are not all empty."""
    if any(value is None for value in values):
        return "the text is null"
    if not all(isinstance(value, str) for value in values):
        wrong = next(value for value in values if not isinstance(value, str))
        return f"not a text but a value of type {type(wrong).__name__}"
    return "" if any(values) else "the text is empty"


def _fixed_lists(rows: Any, dtype: pa.DataType) -> pa.Array:  # noqa: ANN401 - an array of any of the types
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1), dtype), rows.shape[1])


def _token_vectors(outputs: Sequence[Rows], width: int) -> pa.Array:
    offsets = np.cumsum([0, *map(len, outputs)])
    flat = np.concatenate(outputs) if outputs else np.empty((0, width), np.float32)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _fixed_lists(flat, pa.float32()))


def _sparse_columns(rows: Sequence[Sparse]) -> Columns:
    offsets = pa.array(np.cumsum([0, *(len(row.indices) for row in rows)]), pa.int32())
    indices = np.concatenate([np.empty(0, np.int64), *(row.indices for row in rows)])
    values = np.concatenate([np.empty(0, np.float32), *(row.values for row in rows)])
    return {
        "indices": pa.ListArray.from_arrays(offsets, pa.array(indices, pa.int32())),
        "values": pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32())),
    }


def _label_columns(scores: Rows, labels: Sequence[str]) -> Columns:
    best = scores.argmax(axis=1) if len(scores) else np.empty(0, np.intp)
    return {
        "label": pa.array([labels[index] for index in best.tolist()], pa.string()),
        "score": pa.array(scores[np.arange(len(best)), best], pa.float32()),
        "scores": _fixed_lists(scores.reshape(len(scores), len(labels)), pa.float32()),
    }


def _span_columns(encoded: Encoded) -> Columns:
    """Returns the columns with the number, start and end of each chunk; start and end count characters of the text."""
    chunks, starts, ends = list[int](), list[int](), list[int]()
    for index, (owner, tokens) in enumerate(zip(encoded.owners, encoded.tokens, strict=True)):
        is_next = index > 0 and encoded.owners[index - 1] == owner
        chunks.append(chunks[-1] + 1 if is_next else 0)
        spans = [span for span in tokens.spans if not span.special]
        starts.append(min((span.start for span in spans), default=0))
        ends.append(max((span.end for span in spans), default=0))
    return {
        name: pa.array(values, pa.int32()) for name, values in (("chunk", chunks), ("start", starts), ("end", ends))
    }
