"""Runs a bulk job on one engine: one thread reads and tokenizes parts, some compute them, and one publishes them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from bei_core.config.settings import SETTINGS, Settings
from bei_core.engines.open import Opened
from bei_core.errors import ConfigError
from bei_core.http.memory import limit_collections, limit_heaps
from bei_core.jobs.compute import Columns, Encoded, Worker
from bei_core.jobs.datafile import Rows
from bei_core.jobs.inputs import Input, Part, Reader
from bei_core.jobs.options import JobOptions
from bei_core.jobs.output import Folder, Output
from bei_core.jobs.report import Report
from bei_core.jobs.sinks import open_sink, sink_of
from bei_core.serving.served_model import describe

# Part of a job's identity. Increment it when the same rows would give other bytes, which a resumed job would mix.
FORMAT = 3

_SWITCH_S = 0.0005  # how long a thread that runs Python code keeps the GIL after another one has asked for it
_BLOCK_BYTES = 4 << 20  # larger blocks, such as the vectors of a part, are outside the heaps of the C library

ItemT = TypeVar("ItemT")


class Prepared(NamedTuple):
    """A part that is read and tokenized."""

    part: Part
    rows: Rows
    encoded: Encoded


class Job:
    """A job with its engine, ready to compute parts."""

    def __init__(self, opened: Opened, settings: Settings, options: JobOptions, source: Input, folder: Folder) -> None:
        """Raises ConfigError if the model cannot do the job, or the folder is another job's."""
        tokenizer = opened.read_tokenizer(settings)
        model = describe(opened, settings, tokenizer)
        self.worker = Worker(opened.engine, tokenizer, model, settings, options)
        self.options, self.source = options, source
        columns = self.worker.columns()
        taken = {"file", "row", *columns}.intersection(options.keep)
        if taken:
            raise ConfigError(f"`keep` has {', '.join(sorted(taken))}, which the job writes itself; rename the column")
        self._reader = Reader(source.location, source.files, settings.hf_token)
        prompt = model.default_options.prompt or ""
        identity = {
            "model": opened.manifest.source,
            "revision": opened.manifest.revision or "",
            "engine": opened.manifest.artifact,
            "compute_type": model.compute_type,
            "job": self.worker.task,
        }
        if model.labels:
            identity["labels"] = msgspec.json.encode(model.labels).decode()
        self.output = Output(folder, {**identity, "output_dtype": options.output_dtype})
        values = {**msgspec.to_builtins(options), "prompt": prompt, "truncate": settings.auto_truncate}
        limits = self.worker.limits._asdict()  # other batches have other bits
        values |= {name: limit for name, limit in limits.items() if limit != SETTINGS[name].default}
        if self.worker.task == "rerank" and model.template is not None:
            values["rerank_template"] = model.template.fill("{query}", "{document}").text
        target = sink_of(options, columns)
        if values.pop("sink"):
            values["sink"] = str(target)
        described = {"format": FORMAT, "input": source.identity(), "model": identity, "options": values}
        self.output.check(described)
        empty = _table("", pa.array([], pa.int64()), source.schema.empty_table(), columns)
        self._sink = None if target is None else open_sink(target, empty)
        self.output.begin(described)  # after the database was opened, so that another one can be given if it fails

    def prepare(self, part: Part) -> Prepared:
        """Reads and tokenizes a part."""
        rows = self._reader.read(part, self.options, self.source.schema)
        encoded = self.worker.encode(rows.texts)
        encoded.rejected.update(rows.errors)
        if self._sink is not None:
            encoded.rejected.update(self._sink.refusals(rows.kept))
        return Prepared(part, rows, encoded)

    def publish(self, prepared: Prepared, encoded: Encoded, columns: Columns) -> None:
        """Writes the output of a part: into the vector database if there is one, and then as a file."""
        part, owners = prepared.part, pa.array(encoded.owners, pa.int64())
        rows = pc.add(owners, part.split.first)
        table = _table(part.path, rows, prepared.rows.kept.take(owners), columns)
        if self._sink is not None and len(table):
            self._sink.write(table)
        self.output.publish(part, table, encoded.rejected)

    def close(self) -> None:
        """Closes the input and the vector database."""
        self._reader.close()
        if self._sink is not None:
            self._sink.close()

    def run(self, parts: Sequence[Part]) -> Iterator[Report]:
        """Computes and publishes parts; yields a report for each."""
        written: Future[None] | None = None
        threads = self.worker.open_threads()
        # The threads end with this block: a generator that is left behind may be closed by any thread, even by its own.
        with ThreadPoolExecutor(1, "bei-read") as reader, ThreadPoolExecutor(1, "bei-write") as writer:
            reading = _one_ahead(reader.submit(self.prepare, part) for part in parts)
            prepared = (each.result() for each in reading)
            # Batches of the next part wait for the threads, so that the engine need not wait while a part is finished.
            started = _one_ahead((each, self.worker.start(each.encoded, threads)) for each in prepared)
            try:
                for each, running in started:
                    encoded, columns = self.worker.finish(running)
                    if written is not None:
                        written.result()  # at most one part waits to be written, and an error ends the job
                    written = writer.submit(self.publish, each, encoded, columns)
                    num_rows, num_tokens = each.part.split.num_rows, each.encoded.num_tokens
                    yield Report(1, num_rows, len(encoded.rejected), num_tokens, encoded.num_padded)
            finally:
                threads.close()
            if written is not None:
                written.result()


def tune_process() -> None:
    """Sets the global lock (GIL), collections of garbage and heaps, for a process that does nothing but jobs.

    Before each batch the engine's threads need the GIL, for which they wait 5 ms by default while a part is read; a
    batch takes 25 ms. Collections of garbage would visit the tokens of three parts again and again, and find nothing.
    In a heap, the vectors of one part leave a gap that those of the next part fit into or not: 24 MB more or less.
    """
    sys.setswitchinterval(_SWITCH_S)
    limit_collections()
    limit_heaps(_BLOCK_BYTES)


def _table(path: str, rows: pa.Array, kept: pa.Table, columns: Columns) -> pa.Table:
    """Returns the output of a part: file and number of each row, then the columns that are kept, then `columns`."""
    head = {"file": pa.array([path] * len(rows), pa.string()), "row": rows}
    return pa.table({**head, **dict(zip(kept.column_names, kept.columns, strict=True)), **columns})


def _one_ahead(items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Yields each item after it has taken the next one, or after the next one could not be made."""
    last: list[ItemT] = []
    try:
        for item in items:
            yield from last
            last = [item]
    except Exception:
        yield from last
        raise
    yield from last
