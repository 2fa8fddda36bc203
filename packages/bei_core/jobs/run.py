"""Runs a bulk job: parts are read and tokenized, computed, and published, each by a thread of its own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from bei_core.config.settings import Settings
from bei_core.engines.open import Opened, open_engine
from bei_core.jobs.compute import Columns, Encoded, Worker
from bei_core.jobs.datafile import Rows
from bei_core.jobs.inputs import Input, Part, Reader, open_input
from bei_core.jobs.options import JobOptions
from bei_core.jobs.output import Folder, Output
from bei_core.serving.served_model import describe
from bei_core.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_LOG_EVERY_S = 10.0


@dataclass(slots=True)
class Report:
    """What a job has done. Rows and tokens are those of this process; parts that were there before do not count."""

    num_parts: int = 0
    num_parts_before: int = 0
    num_rows: int = 0
    num_rejected: int = 0
    num_tokens: int = 0
    padding_share: float = 0.0  # of the tokens that the engine computed
    seconds: float = 0.0

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        before = f", {self.num_parts_before} parts were there" if self.num_parts_before else ""
        return (
            f"{self.num_rows} rows in {self.num_parts} parts, {self.num_rejected} rejected{before}; "
            f"{self.seconds:.1f} s, {self.num_rows / seconds:.1f} rows/s, {self.num_tokens / seconds:.0f} tokens/s, "
            f"{self.padding_share:.1%} padding"
        )


class Prepared(NamedTuple):
    """A part that is read and tokenized."""

    part: Part
    rows: Rows
    encoded: Encoded


class Job:
    """A job with its engine, ready to compute parts."""

    def __init__(self, opened: Opened, settings: Settings, options: JobOptions, source: Input, folder: Folder) -> None:
        """Raises ConfigError if the model cannot do the job, or the folder is another job's."""
        tokenizer = TextTokenizer(
            opened.tokenizer,
            max_seq_len=min(opened.spec.max_seq_len, settings.max_batch_tokens),
            vocab_size=opened.spec.vocab_size,
            lower_case=opened.spec.do_lower_case,
        )
        model = describe(opened, settings, tokenizer)
        self.worker = Worker(opened.engine, tokenizer, model, options)
        self.options, self.source = options, source
        self._reader = Reader(source.location)
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
        self.output.begin(
            {
                "format": 1,
                "input": source.identity(),
                "model": identity,
                "options": {**msgspec.to_builtins(options), "prompt": prompt, "truncate": settings.auto_truncate},
            }
        )

    def prepare(self, part: Part) -> Prepared:
        """Reads and tokenizes a part."""
        rows = self._reader.read(part, self.options, self.source.schema)
        encoded = self.worker.encode(rows.texts)
        encoded.rejected.update(rows.errors)
        return Prepared(part, rows, encoded)

    def compute(self, prepared: Prepared) -> tuple[Encoded, Columns]:
        """The columns of a part. Only one thread may call it."""
        return self.worker.run(prepared.encoded)

    def publish(self, prepared: Prepared, encoded: Encoded, columns: Columns) -> None:
        """Writes the output of a part."""
        part, owners = prepared.part, pa.array(encoded.owners, pa.int64())
        head = {
            "file": pa.array([part.path] * len(owners), pa.string()),
            "row": pc.add(owners, part.split.first),
        }
        kept = prepared.rows.kept.take(owners)
        table = pa.table({**head, **dict(zip(kept.column_names, kept.columns, strict=True)), **columns})
        self.output.publish(part, table, encoded.rejected)

    def run(self, parts: Sequence[Part], report: Report, each: Callable[[], None]) -> None:
        """Computes parts; `each` is called after every part."""
        with ThreadPoolExecutor(1, "bei-write") as writer:
            written: Future[None] | None = None
            for prepared in _ahead(self.prepare, parts):
                encoded, columns = self.compute(prepared)
                if written is not None:
                    written.result()  # at most one part waits to be written, and an error ends the job
                written = writer.submit(self.publish, prepared, encoded, columns)
                report.num_parts += 1
                report.num_rows += prepared.part.split.num_rows
                report.num_rejected += len(encoded.rejected)
                report.num_tokens += prepared.encoded.num_tokens
                each()
            if written is not None:
                written.result()
        report.padding_share = 1 - self.worker.num_tokens / (self.worker.num_padded or 1)


def embed(
    source: str | Path,
    output: str | Path,
    *,
    settings: Settings | Mapping[str, object] | None = None,
    options: JobOptions | None = None,
) -> Report:
    """Runs every row of a data set through a model and writes Parquet files; see `bei embed-dataset`.

    `source` is a file, a folder or a glob: a path, the URL of an object store, or `hf://datasets/…`. `output` is a
    folder or the URL of one; if the same job was stopped there before, it goes on. `settings` choose the model; a
    mapping is read as the flags of `bei serve` are. Raises StartError if the job cannot begin, or cannot go on.
    """
    if not isinstance(settings, Settings):
        settings = Settings.load(settings or {}, os.environ)
    options = options or JobOptions()
    folder = Folder(str(output))
    with folder.locked():
        data = open_input(str(source), options)
        opened = open_engine(settings)
        try:
            return _run(Job(opened, settings, options, data, folder))
        finally:
            opened.close()


def _run(job: Job) -> Report:
    missing = job.output.missing(job.source.parts)
    report = Report(num_parts_before=len(job.source.parts) - len(missing))
    started = time.perf_counter()
    with _progress(job.source.parts, missing, report) as show:
        job.run(missing, report, show)
    report.seconds = time.perf_counter() - started
    job.output.finish(job.source.parts)
    return report


def _ahead(function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[ResultT]:
    """`map`, with the next result made on a thread while the caller uses the last one."""
    with ThreadPoolExecutor(1, "bei-read") as reader:
        coming: Future[ResultT] | None = None
        for item in items:
            following = reader.submit(function, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


@contextmanager
def _progress(parts: Sequence[Part], missing: Sequence[Part], report: Report) -> Iterator[Callable[[], None]]:
    """A function that shows the progress: a bar on a terminal, else a line in the log every ten seconds."""
    from tqdm import tqdm

    total = sum(part.split.num_rows for part in parts)
    before = total - sum(part.split.num_rows for part in missing)
    started = time.perf_counter()
    with tqdm(
        total=total, initial=before, unit=" rows", unit_scale=True, mininterval=1.0, disable=not os.isatty(2)
    ) as bar:
        logged = started

        def show() -> None:
            nonlocal logged
            now = time.perf_counter()
            rate = report.num_tokens / max(now - started, 1e-9)
            bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            bar.update(before + report.num_rows - bar.n)
            if bar.disable and now - logged >= _LOG_EVERY_S:
                logged = now
                rows_s = report.num_rows / (now - started)
                left = (total - before - report.num_rows) / max(rows_s, 1e-9)
                done = before + report.num_rows
                log.info("%d of %d rows, %.1f rows/s, %.0f tokens/s, %.0f s left", done, total, rows_s, rate, left)

        yield show
