"""Computes the output columns of one part from its texts: tokenize, run in batches, finish."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from bei_core.config.settings import Settings
from bei_core.engines.base import Engine
from bei_core.engines.batch import Batch, distinct
from bei_core.errors import BeiError, ConfigError, RequestError, UnhealthyError
from bei_core.http.schemas.vectors import Precision, quantize
from bei_core.jobs.batches import plan_batches
from bei_core.jobs.options import JobOptions, OutputDtype, Task
from bei_core.jobs.threads import Threads
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.tasks import Classify, Embed, Rank, Rows, Sparse, Text, Tokens, check_dimensions
from bei_core.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

# The CPU engine may compile graphs for lone texts of at most so many tokens (engines/openvino/lone.py).
_LONE_TOKENS = 128

# A part is divided into the largest batches only if it has at least so many of them: each of 8 threads gets some.
_MANY_BATCHES = 16

Columns: TypeAlias = dict[str, pa.Array]

# The outputs of texts: f32[N, D] if each text has one row, else a list of one output a text.
Outputs: TypeAlias = Any

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
    num_padded: float = 0.0  # tokens of all entries, also of repeated ones, and the padding that the engine computed

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


@dataclass(slots=True)
class Started:
    """A part that the engine computes. When `running` is done, `outputs`, `reasons` and `num_padded` are complete."""

    encoded: Encoded
    outputs: Outputs  # of `distinct`; each thread writes those of its batch, while the processor's cache has them
    distinct: Sequence[Tokens] = ()  # the entries that are computed: one of each group with equal tokens
    places: Sequence[int] = ()  # for each entry of `encoded`, the index in `distinct` of the one with its tokens
    num_repeated: int = 0  # tokens of the entries that are not computed
    running: Sequence[Future[None]] = ()
    reasons: dict[int, str] = field(default_factory=dict)  # why an entry has no output, by its index in `distinct`
    num_padded: list[float] = field(default_factory=list)  # of each batch, its tokens and its padding


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
        return self.finish(Started(Encoded(), self._space(0)))[1]

    def encode(self, texts: Sequence[Sequence[object]]) -> Encoded:
        """Returns the tokens of the rows of a part. `texts` has one list per text column."""
        rejected = _reasons_against(texts)
        rows = [row for row in range(len(texts[0])) if row not in rejected]
        values = zip(*([column[row] for row in rows] for column in texts), strict=True)
        inputs = [self._model.pair(*map(str, each)) if len(each) > 1 else str(each[0]) for each in values]
        tokens = self._tokens_of_all(inputs)
        if tokens is not None:
            return Encoded(tokens, rows, rejected)
        encoded = Encoded(rejected=rejected)
        for row, found in zip(rows, map(self._tokens, inputs), strict=True):
            if isinstance(found, str):
                encoded.rejected[row] = found
            else:
                encoded.add(row, found)
        return encoded

    def open_threads(self) -> Threads:
        """Returns the threads that call the engine."""
        return Threads(self._engine.info.num_callers)

    def start(self, encoded: Encoded, threads: Threads) -> Started:
        """Gives the batches of a part to the threads. They run after those of the parts before.

        Entries with the same tokens are computed once.
        """
        tokens, places = distinct(encoded.tokens)
        num_repeated = encoded.num_tokens - sum(map(len, tokens))
        started = Started(encoded, self._space(len(tokens)), tokens, places, num_repeated)
        batches = deque(self.batches(tokens))
        started.running = threads.run(batches, lambda each: self._compute(started, *each))
        return started

    def batches(self, tokens: Sequence[Tokens]) -> Iterator[tuple[list[int], Batch]]:
        """Yields the batches of a part, each with the indices of its texts; the same for any number of threads."""
        lengths, info = [len(item.ids) for item in tokens], self._engine.info
        # In bf16, large batches were not faster on several streams (docs/decisions/029-bulk-jobs.md).
        most = min(info.most_batch_tokens, self.limits.max_batch_tokens) if info.precision == "int8" else 0
        budget = most if most and sum(lengths) >= _MANY_BATCHES * most else info.batch_tokens
        for indices, row_length in plan_batches(lengths, budget, *self.limits):
            yield indices, _pack(tokens, indices, row_length)

    def finish(self, started: Started) -> tuple[Encoded, Columns]:
        """Waits for a part. Returns the entries that have an output row, and the output columns, a row per entry.

        All entries of an input row are rejected if the engine fails on one of them, or gives NaN or infinity for it.
        """
        for each in started.running:
            each.result()
        done, outputs = started.encoded, started.outputs
        started.outputs = None  # so that they are freed below, and not with the part
        if started.reasons or done.rejected or len(started.distinct) < len(done.tokens):
            done, outputs = self._with_output(started, outputs)
        done = replace(done, num_padded=started.num_repeated + sum(started.num_padded))
        columns = _span_columns(done) if self._options.chunk else {}
        return done, {**columns, **self._finished(outputs)}

    def _with_output(self, started: Started, outputs: Outputs) -> tuple[Encoded, Outputs]:
        """Returns the entries of the rows that are not rejected, and the output of each."""
        encoded = started.encoded
        rejected = dict(encoded.rejected)
        for owner, place in zip(encoded.owners, started.places, strict=True):
            if place in started.reasons:
                rejected.setdefault(owner, started.reasons[place])
        kept = [index for index, owner in enumerate(encoded.owners) if owner not in rejected]
        tokens, owners = [encoded.tokens[index] for index in kept], [encoded.owners[index] for index in kept]
        places = [started.places[index] for index in kept]
        left = [outputs[place] for place in places] if isinstance(outputs, list) else outputs[places]
        return Encoded(tokens, owners, rejected), left

    def _space(self, num_outputs: int) -> Outputs:
        """Returns space for outputs."""
        if self.task in {"tokens", "sparse"}:
            return [None] * num_outputs
        return np.empty((num_outputs, self._engine.info.row_width), np.float32)

    def _tokens_of_all(self, inputs: list[Text]) -> list[Tokens] | None:
        """Returns the tokens of each input; None if one cannot be encoded, or they are to be split into chunks."""
        if self._options.chunk or not inputs:
            return None
        try:
            return self._tokenizer.encode_now(inputs, self._encode_options)
        except RequestError:
            log.debug("a part has a text that cannot be encoded; encoding its texts one by one", exc_info=True)
            return None

    def _tokens(self, text: Text) -> Sequence[Tokens] | str:
        """Returns the tokens of an input, one entry per chunk, or the reason why it cannot be encoded (a str)."""
        try:
            if self._options.chunk:
                return self._tokenizer.chunk_now([text], self._encode_options)[0]
            return self._tokenizer.encode_now([text], self._encode_options)
        except RequestError as error:
            return str(error)

    def _compute(self, started: Started, indices: list[int], batch: Batch) -> None:
        """Computes the outputs of some entries, which a batch holds in this order."""
        try:
            rows = self._forward(batch)[: len(indices)]
        except UnhealthyError as error:  # while its process is started again, it would fail on every text
            raise BeiError("the process of the engine has ended; see the log, and start the job again") from error
        except Exception:
            log.warning("the engine failed on a batch of %d; running its halves", len(indices), exc_info=True)
            return self._compute_halves(started, indices)
        started.num_padded.append(batch.num_tokens / (1 - self._engine.padding_share()))
        if isinstance(rows, list) or not np.isfinite(rows).all():
            infinite = [index for index, row in zip(indices, rows, strict=True) if not np.isfinite(row).all()]
            started.reasons.update(dict.fromkeys(infinite, "the model gave NaN or infinity for this text"))
        if not isinstance(started.outputs, list):
            started.outputs[indices] = rows
            return None
        for index, row in zip(indices, rows, strict=True):
            if index not in started.reasons:
                started.outputs[index] = self._output(row, started.distinct[index])
        return None

    def _compute_halves(self, started: Started, indices: list[int]) -> None:
        """Computes the halves of a batch on which the engine failed, or rejects its only text."""
        if len(indices) == 1:
            self._check_engine()
            started.reasons[indices[0]] = "the engine failed on this text; see the log"
            return
        middle = len(indices) // 2
        for half in (indices[:middle], indices[middle:]):
            self._compute(started, half, _pack(started.distinct, half))

    def _forward(self, batch: Batch) -> Outputs:
        """Returns f32[B, D], or f32[n, E] of the tokens of each text."""
        if self.task == "tokens" or (self.task == "sparse" and self._engine.info.weighs_terms):
            return np.split(self._engine.forward_tokens(batch)[1], batch.cu_seqlens[1:-1])
        return self._engine.forward(batch)

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

    def _finished(self, outputs: Outputs) -> Columns:
        """Returns the columns that the job computes, from one output per entry."""
        whole = replace(self._encode_options, chunk=False)  # each chunk has a row of its own
        if self.task == "tokens":
            vectors = self._model.embed_all([], whole).finish(outputs)
            return {"vectors": _token_vectors(vectors, self._model.token_width)}
        if self.task == "sparse":
            return _sparse_columns(self._model.embed_sparse([], whole).finish(outputs))
        if self.task == "embed":
            return {"embedding": self._embeddings(outputs)}
        if self.task == "rerank":
            ranks = Rank([], self._encode_options, self._model.rank_scoring).finish(outputs)
            return {"score": pa.array([score for _, score in sorted(ranks)], pa.float32())}
        finished = Classify([], self._encode_options, self._model.scoring).finish(outputs)
        return _label_columns(finished, self._model.labels)

    def _embeddings(self, rows: Rows) -> pa.Array:
        options = self._options
        finished = Embed([], normalize=options.normalize, dimensions=options.dimensions).finish(rows)
        precision, dtype = _PRECISIONS[options.output_dtype]
        return _fixed_lists(quantize(finished, precision), dtype)


def _pack(tokens: Sequence[Tokens], indices: Sequence[int], row_length: int = 0) -> Batch:
    """Returns a batch of some entries.

    During a job, the CPU engine may begin to run batches of one short text by another graph, which gives other bits. So
    such a text is twice in its batch.
    """
    items = [tokens[index] for index in indices]
    return Batch.pack(items * 2 if len(items) == 1 and len(items[0].ids) <= _LONE_TOKENS else items, row_length)


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
