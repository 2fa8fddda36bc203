"""The progress of a calibration: a bar on a terminal, a log line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from bei_core.engines.batch import Batch

log = logging.getLogger(__name__)

_EVERY_S = 10.0  # between log lines


def with_progress(batches: Sequence[Batch], what: str) -> Iterator[tuple[int, Batch]]:
    """Each batch with its number, from 0, while the progress and the time that is left are shown."""
    has_bar = sys.stderr.isatty()
    started = logged = time.monotonic()
    for number, batch in enumerate(tqdm(batches, desc=what, unit=" batches", file=sys.stderr, disable=not has_bar)):
        now = time.monotonic()
        if not has_bar and now - logged >= _EVERY_S:
            logged = now
            left = (now - started) / number * (len(batches) - number)
            log.info("%s: %d of %d batches, about %.0f s left", what, number, len(batches), left)
        yield number, batch
