"""Reads the request headers that set a deadline and a priority."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from bei_core.errors import ValidationError
from bei_core.serving.queue import HEAD_START_S

HEADERS = frozenset({b"request-timeout-ms", b"request-deadline-ms", b"x-priority"})


def read_deadline(headers: Mapping[bytes, bytes]) -> float | None:
    """Returns the request's deadline in seconds on the clock of time.monotonic; None if there is none.

    If both deadline headers are given, the earlier one counts. Raises ValidationError if a header is not a number.
    """
    now, limits = time.monotonic(), []
    for name, origin in (("request-timeout-ms", now), ("request-deadline-ms", now - time.time())):
        value = headers.get(name.encode())
        if value is not None:
            text = value.decode("latin-1")
            try:
                limit = origin + float(text) / 1e3
            except ValueError:
                limit = math.nan
            if math.isnan(limit):  # the text "nan" is refused too: such a deadline would never pass
                raise ValidationError(f"{name} must be a number of milliseconds, got {text!r}", param=name)
            limits.append(limit)
    return min(limits, default=None)


def read_priority(headers: Mapping[bytes, bytes]) -> str:
    """Returns the header `x-priority`, by default "normal". Raises ValidationError for an unknown priority."""
    name = headers.get(b"x-priority", b"normal").decode("latin-1").lower()
    if name not in HEAD_START_S:
        raise ValidationError(f"x-priority must be one of {', '.join(HEAD_START_S)}, got {name!r}", param="x-priority")
    return name
