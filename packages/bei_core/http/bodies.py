"""Large JSON bodies: counted before they are decoded, then decoded in pieces.

A decoder holds Python's lock until it returns, on any thread, so that the event loop stands still meanwhile. A body is
therefore cut at commas into pieces of bounded size. NumPy finds the commas; it works without the lock.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from bei_core.errors import MalformedBodyError, PayloadTooLargeError
from bei_core.http.codings import inflated
from bei_core.http.limits import (
    MAX_JSON_CONTAINERS,
    MAX_JSON_DEPTH,
    MAX_JSON_FIELDS,
    MAX_JSON_TEXT_BYTES,
    MAX_JSON_VALUES,
)
from bei_core.http.schemas.common import convert, decode

__all__ = ["INLINE_BODY_BYTES", "decode_large", "inflated", "memory_of"]  # all that is done to a body

ValueT = TypeVar("ValueT")
Bytes: TypeAlias = npt.NDArray[np.uint8]
Places: TypeAlias = npt.NDArray[np.int64]

# Bytes of a body that are decoded on the event loop, in 0.5 ms at most whatever is in them, and bytes of a piece, in
# 10 ms at most.
INLINE_BODY_BYTES = 8192
MAX_JSON_PIECE_BYTES = 131_072

_WINDOW = 262_144  # bytes that are scanned at once, so that the arrays stay in the processor's cache

_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_STEPS = np.zeros(256, np.int8)  # by byte: the change in depth
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_CLOSING = {b"[": b"]", b"{": b"}"}

_MAX_NAME = 1024  # bytes of the name of a field whose value is large
_NAME = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:\s*')


def decode_large(raw: bytes, schema: type[ValueT]) -> ValueT:
    """A JSON body of any size as `schema`; to be called on a thread.

    Raises PayloadTooLargeError for a body that has more values than are read, else as `schemas.common.decode` does.
    """
    if len(raw) <= MAX_JSON_PIECE_BYTES:
        return decode(raw, schema)
    value = _Json(raw).value()
    return value if schema is object else convert(value, schema)


def memory_of(value: object) -> int:
    """Bytes of memory of a decoded body, roughly."""
    size = sys.getsizeof(value, 0)
    if isinstance(value, list | tuple):
        return size + sum(map(memory_of, value))
    if isinstance(value, dict):
        return size + sum(map(memory_of, value.values()))
    if isinstance(value, msgspec.Struct):
        return size + sum(memory_of(getattr(value, name)) for name in value.__struct_fields__)
    return size


class _Json:
    """A JSON text and the places of its commas and brackets, without those inside strings."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._places, self._depths = _scan(np.frombuffer(raw, np.uint8))

    def value(self) -> Any:  # noqa: ANN401 - whatever JSON has
        """The decoded text. Raises MalformedBodyError, PayloadTooLargeError."""
        return self._value(0, len(self._raw), 0)

    def _value(self, start: int, stop: int, depth: int) -> Any:  # noqa: ANN401
        """The value at raw[start:stop], which is `depth` containers deep."""
        if stop - start <= MAX_JSON_PIECE_BYTES:
            return decode(self._raw[start:stop], object)
        first, last = np.searchsorted(self._places, (start, stop))
        if first == last or self._raw[start : self._places[first]].strip():  # no container
            _check_text(stop - start)
            return decode(self._raw[start:stop], object)
        opening, closing = self._places[first], self._places[last - 1]
        kind = self._raw[opening : opening + 1]
        if self._raw[closing : closing + 1] != _CLOSING.get(kind) or self._raw[closing + 1 : stop].strip():
            raise MalformedBodyError("the body is not JSON in UTF-8: its brackets do not match")
        inside = slice(first + 1, last - 1)
        commas = self._places[inside][self._depths[inside] == depth + 1]
        parts = _grouped(opening + 1, closing, commas[_is_comma(self._raw, commas)])
        return self._list(parts, depth + 1) if kind == b"[" else self._object(parts, depth + 1)

    def _list(self, parts: Iterator[tuple[int, int]], depth: int) -> list[Any]:
        found: list[Any] = []
        for start, stop in parts:
            if stop - start > MAX_JSON_PIECE_BYTES:
                found.append(self._value(start, stop, depth))
            else:
                found += decode(b"[%b]" % self._piece(start, stop), list)
        return found

    def _object(self, parts: Iterator[tuple[int, int]], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for start, stop in parts:
            if stop - start <= MAX_JSON_PIECE_BYTES:
                found |= decode(b"{%b}" % self._piece(start, stop), dict)
                _check_fields(len(found))
                continue
            name = _NAME.match(self._raw, start, min(stop, start + _MAX_NAME))
            if name is None:
                raise MalformedBodyError(f"a field of the body has no name of at most {_MAX_NAME} bytes")
            found[decode(name[1], str)] = self._value(name.end(), stop, depth)
        return found

    def _piece(self, start: int, stop: int) -> bytes:
        """Some elements with the commas between them."""
        piece = self._raw[start:stop]
        if not piece.strip():
            raise MalformedBodyError("the body is not JSON in UTF-8: a comma has no value after it")
        return piece


def _is_comma(raw: bytes, places: Places) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.frombuffer(raw, np.uint8)[places] == _COMMA
    return found


def _grouped(start: int, stop: int, commas: Places) -> Iterator[tuple[int, int]]:
    """Begin and end of parts of raw[start:stop], cut at commas: as many elements as a piece may hold, at least one."""
    while stop - start > MAX_JSON_PIECE_BYTES:
        after = int(np.searchsorted(commas, start))
        if after == len(commas):
            break
        within = int(np.searchsorted(commas, start + MAX_JSON_PIECE_BYTES, side="right")) - 1
        comma = int(commas[max(within, after)])
        yield start, comma
        start = comma + 1
    yield start, stop


def _scan(data: Bytes) -> tuple[Places, npt.NDArray[np.int32]]:
    """The places of commas and brackets outside strings, and the depth around each of them.

    Raises PayloadTooLargeError if there are too many, MalformedBodyError if strings or brackets do not end.
    """
    places, steps, inside, start = [], [], 0, 0
    num_values, num_containers = 1, 0
    while start < len(data):
        stop = _window_end(data, start)
        window = data[start:stop]
        quoted = np.bitwise_xor.accumulate((window == _QUOTE) & ~_escaped(window)).view(np.uint8) ^ inside
        found = np.flatnonzero(((window == _COMMA) | (_STEPS[window] != 0)) & (quoted == 0))
        places.append(found + start)
        steps.append(_STEPS[window[found]])
        opened = int(np.count_nonzero(steps[-1] > 0))
        num_containers += opened
        num_values += len(found) - opened  # one for each comma, one for each end of a list or an object
        _check_counts(num_values, num_containers)
        inside, start = int(quoted[-1]), stop
    depths = np.cumsum(np.concatenate(steps), dtype=np.int32)
    if inside or (len(depths) and (depths[-1] != 0 or depths.min() < 0)):
        raise MalformedBodyError("the body is not JSON in UTF-8: it ends inside a string, a list or an object")
    if len(depths) and depths.max() > MAX_JSON_DEPTH:
        raise MalformedBodyError("the body is nested too deeply")
    return np.concatenate(places), depths


def _window_end(data: Bytes, start: int) -> int:
    """Where a window ends that does not end with a backslash, unless the data do."""
    size = _WINDOW
    while start + size < len(data):
        others = np.flatnonzero(data[start : start + size] != _BACKSLASH)
        if len(others):
            return start + int(others[-1]) + 1
        size *= 2
    return len(data)


def _escaped(window: Bytes) -> npt.NDArray[np.bool_]:
    """Which bytes follow an odd number of backslashes. The window does not begin inside such a row of backslashes."""
    escaped = np.zeros(len(window), np.bool_)
    slashes = np.flatnonzero(window == _BACKSLASH)
    if len(slashes):
        breaks = np.flatnonzero(np.diff(slashes) != 1)
        firsts = slashes[np.concatenate([[0], breaks + 1])]
        lasts = slashes[np.concatenate([breaks, [len(slashes) - 1]])]
        after = lasts[(lasts - firsts) % 2 == 0] + 1
        escaped[after[after < len(window)]] = True
    return escaped


def _check_counts(num_values: int, num_containers: int) -> None:
    if num_containers > MAX_JSON_CONTAINERS:
        raise PayloadTooLargeError(
            f"the body has more than {MAX_JSON_CONTAINERS} lists and objects; send it as several requests"
        )
    if num_values > MAX_JSON_VALUES:
        raise PayloadTooLargeError(f"the body has more than {MAX_JSON_VALUES} values; send it as several requests")


def _check_fields(num_fields: int) -> None:
    if num_fields > MAX_JSON_FIELDS:
        raise PayloadTooLargeError(f"an object of the body has more than {MAX_JSON_FIELDS} fields")


def _check_text(num_bytes: int) -> None:
    if num_bytes > MAX_JSON_TEXT_BYTES:
        raise PayloadTooLargeError(
            f"a text of the body has {num_bytes} bytes; at most {MAX_JSON_TEXT_BYTES} are read; split it"
        )
