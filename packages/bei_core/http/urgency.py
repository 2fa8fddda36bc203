"""Reads the request headers that set a deadline and a priority, and those that mark a retry."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from bei_core.errors import ValidationError
from bei_core.serving.queue import HEAD_START_S

HEADERS = frozenset({b"request-timeout-ms", b"request-deadline-ms", b"x-priority"})

# Headers that number the attempts, with the number of the first attempt: the SDKs made by Stainless (of OpenAI,
# Anthropic, mixedbread), and Envoy with `include_request_attempt_count`.
_FIRST_ATTEMPTS = {b"x-stainless-retry-count": 0, b"x-envoy-attempt-count": 1}


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


def is_retry(headers: Mapping[bytes, bytes]) -> bool:
    """Returns whether a header says that the request was sent before. Ignores a value that is not a number."""
    given = ((headers.get(name, b""), first) for name, first in _FIRST_ATTEMPTS.items())
    return any(value.isdigit() and value.lstrip(b"0") not in {b"", b"%d" % first} for value, first in given)
