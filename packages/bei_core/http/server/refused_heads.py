"""Recognizes requests whose head equals that of a request refused moments ago, so that they need no parsing."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from bei_core.http.replies import Refusal

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=[ \t]*\r\n)", re.IGNORECASE)

# Clients of one program send equal heads, but for the length of the body. More kinds than this are parsed.
_MAX_HEADS = 8


class RepeatedRefusal(NamedTuple):
    """What to reply to a known head."""

    refusal: Refusal
    keep_alive: bool  # the head asks for the connection to stay open


class RefusedHeads:
    """The heads of requests that were refused, in two parts: before and after the value of content-length.

    The key of a head is its bytes, so equal bytes mean the same route, API key and priority.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[bytes, bytes], RepeatedRefusal] = {}

    def add(self, head: bytes, refusal: Refusal, *, keep_alive: bool) -> None:
        """Adds the whole head of a request that got this refusal. Ignores a head without content-length."""
        found = _CONTENT_LENGTH.search(head)
        if found is not None:
            if len(self._heads) == _MAX_HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[head[: found.start(1)], head[found.end(1) :]] = RepeatedRefusal(refusal, keep_alive)

    def find(self, data: bytes) -> RepeatedRefusal | None:
        """Returns what to reply to `data`; None unless that is exactly one request with a known head."""
        for (start, end), known in self._heads.items():
            if data.startswith(start):
                at = data.find(b"\r", len(start), len(start) + 10)
                length = data[len(start) : at]
                if length.isdigit() and data.startswith(end, at) and len(data) == at + len(end) + int(length):
                    return self._renewed((start, end), known)
        return None

    def _renewed(self, head: tuple[bytes, bytes], known: RepeatedRefusal) -> RepeatedRefusal | None:
        """Returns what to reply now, which is nothing if the request would be accepted."""
        if time.monotonic() < known.refusal.until:
            return known
        if (refusal := known.refusal.renew()) is None:
            del self._heads[head]
            return None
        self._heads[head] = known._replace(refusal=refusal)
        return self._heads[head]
