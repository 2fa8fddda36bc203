"""The report of a bulk job, and the display of its progress."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from tqdm import tqdm

from bei_core.jobs.inputs import Part

log = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0


@dataclass(slots=True)
class Report:
    """What a job computed. Only `num_parts_before` counts parts that were published before the job started."""

    num_parts: int = 0
    num_rows: int = 0
    num_rejected: int = 0
    num_tokens: int = 0  # also of texts that repeat one of their part, which are not computed again
    num_padded: float = 0.0  # the same, and the padding that the engine computed
    num_parts_before: int = 0
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        """Adds the counts of another report."""
        self.num_parts += other.num_parts
        self.num_rows += other.num_rows
        self.num_rejected += other.num_rejected
        self.num_tokens += other.num_tokens
        self.num_padded += other.num_padded

    @property
    def padding_share(self) -> float:
        """Share (0 to 1) of padding in the tokens, also of repeated texts, and the padding."""
        return max(0.0, 1 - self.num_tokens / self.num_padded) if self.num_padded else 0.0

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        before = f", {self.num_parts_before} parts were there" if self.num_parts_before else ""
        return (
            f"{self.num_rows} rows in {self.num_parts} parts, {self.num_rejected} rejected{before}; "
            f"{self.seconds:.1f} s, {self.num_rows / seconds:.1f} rows/s, {self.num_tokens / seconds:.0f} tokens/s, "
            f"{self.padding_share:.1%} padding"
        )


class Progress:
    """The progress of a job: a bar on a terminal, else a line in the log every ten seconds."""

    def __init__(self, parts: Sequence[Part], missing: Sequence[Part]) -> None:
        self.report = Report(num_parts_before=len(parts) - len(missing))
        self._total = sum(part.split.num_rows for part in parts)
        self._before = self._total - sum(part.split.num_rows for part in missing)

    def __enter__(self) -> Progress:
        self._started = self._logged = time.perf_counter()
        self._bar = tqdm(
            total=self._total, initial=self._before, unit=" rows", unit_scale=True, disable=not os.isatty(2)
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.report.seconds = time.perf_counter() - self._started
        self._bar.close()

    def add(self, report: Report) -> None:
        """Adds a report, and shows the progress."""
        self.report.add(report)
        now, done = time.perf_counter(), self._before + self.report.num_rows
        seconds = max(now - self._started, 1e-9)
        rows_s, tokens_s = self.report.num_rows / seconds, self.report.num_tokens / seconds
        self._bar.set_postfix_str(f"{tokens_s:.0f} tokens/s", refresh=False)
        self._bar.update(report.num_rows)
        if self._bar.disable and now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            left = (self._total - done) / max(rows_s, 1e-9)
            log.info(
                "%d of %d rows, %.1f rows/s, %.0f tokens/s, %.0f s left", done, self._total, rows_s, tokens_s, left
            )
