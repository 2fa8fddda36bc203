"""Large JSON bodies: counted before they are decoded, then decoded in pieces.

A JSON decoder holds the GIL until it returns, even on another thread, and blocks the event loop for that time. A body
is therefore cut at commas into pieces of bounded size. NumPy finds the commas, because NumPy releases the GIL.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from bei_core.errors import MalformedBodyError, PayloadTooLargeError, ValidationError
from bei_core.http.codings import inflated, joined
from bei_core.http.limits import (
    MAX_JSON_CONTAINERS,
    MAX_JSON_DEPTH,
    MAX_JSON_FIELDS,
    MAX_JSON_TEXT_BYTES,
    MAX_JSON_VALUES,
)
from bei_core.http.schemas.common import convert, decode

# All functions on bodies that `app` needs.
__all__ = ["INLINE_BODY_BYTES", "convert_large", "decode_large", "free", "inflated", "joined", "memory_of"]

ValueT = TypeVar("ValueT")
Bytes: TypeAlias = npt.NDArray[np.uint8]
Places: TypeAlias = npt.NDArray[np.int64]

# INLINE_BODY_BYTES: a body of at most this size is decoded on the event loop, which takes at most 0.5 ms for any
# content. MAX_WHOLE_BYTES: a body of at most this size is decoded at once on a thread, which holds the GIL for at most
# 10 ms. MAX_JSON_PIECE_BYTES: the size of a piece of a larger body; decoding a piece takes at most 3 ms. It is smaller,
# because there are many pieces: the event loop needs the GIL several times for a request, and waits each time.
INLINE_BODY_BYTES = 8192
MAX_WHOLE_BYTES = 131_072
MAX_JSON_PIECE_BYTES = 32_768

_ITEMS_PER_PIECE = 8192  # of a list, in one call that holds the GIL: at most 1 ms

_CONTAINERS = (list, tuple, dict, msgspec.Struct)

_WINDOW = 262_144  # bytes scanned in one step, so that the arrays fit in the CPU cache

_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_STEPS = np.zeros(256, np.int8)  # i8[256], indexed by byte: the change in nesting depth
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_CLOSING = {b"[": b"]", b"{": b"}"}

_MAX_NAME = 1024  # the most bytes of a field name if the value of the field is large
_NAME = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:\s*')


def decode_large(raw: bytes, schema: type[ValueT]) -> ValueT:
    """Decodes a JSON body of any size into `schema`. Call it on a thread.

    Raises PayloadTooLargeError if the body has too many values, and the same errors as `schemas.common.decode`.
    """
    if len(raw) <= MAX_WHOLE_BYTES:
        return decode(raw, schema)
    value = _Json(raw).value()
    return value if schema is object else convert_large(value, schema)


def convert_large(value: object, schema: type[ValueT]) -> ValueT:
    """Converts a decoded body to `schema`, and its long lists in pieces; raises the same errors as `convert`.

    msgspec holds the GIL until it returns: for 14 ms if the body has a million numbers.
    """
    kinds = {field.name: field.type for field in msgspec.structs.fields(schema)}  # type: ignore[arg-type]
    given = value if isinstance(value, dict) else {}
    lists = {name: items for name, items in given.items() if name in kinds and isinstance(items, list)}
    try:
        body = convert({**given, **{name: [] for name in lists}} if lists else value, schema)
        for name, items in lists.items():
            setattr(body, name, _converted(items, kinds[name]))
    except ValidationError:
        return convert(value, schema)  # its error names the place in the whole list
    return body


def memory_of(value: object) -> int:
    """Estimates the memory of a decoded body, in bytes."""
    size, held = sys.getsizeof(value), [value]
    while held:
        items = _items(held.pop())
        for start in range(0, len(items), _ITEMS_PER_PIECE):
            piece = items[start : start + _ITEMS_PER_PIECE]
            size += sum(map(sys.getsizeof, piece))
            held += _containers(piece)
    return size


def free(held: list[Any]) -> None:
    """Frees decoded bodies, which nothing else refers to, in pieces. Call it on a thread.

    To free a list of a million numbers at once holds the GIL for 15 ms.
    """
    while held:
        value = held.pop()
        if not isinstance(value, list):
            held += _containers(_items(value))
            continue
        while value:
            held += _containers(value[-_ITEMS_PER_PIECE:])
            del value[-_ITEMS_PER_PIECE:]


def _converted(items: list[Any], kind: Any) -> list[Any]:  # noqa: ANN401 - a type
    """Converts a list to `kind`, which is the type of the whole list, by halves until they are small enough."""
    size = len(items)
    if size <= _ITEMS_PER_PIECE:
        size += sum(map(len, _containers(items)))
    if size > _ITEMS_PER_PIECE and len(items) > 1:
        first, second = (_converted(half, kind) for half in _halves(items))
        return first + second
    if size > _ITEMS_PER_PIECE and isinstance(items[0], list):
        first, second = (_converted([half], kind)[0] for half in _halves(items[0]))
        return [first + second]
    return convert(items, kind)


def _halves(items: list[Any]) -> tuple[list[Any], list[Any]]:
    middle = len(items) // 2
    return items[:middle], items[middle:]


def _items(value: object) -> Sequence[Any]:
    """The values directly inside a decoded value; empty for a string or a number."""
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()


def _containers(items: Sequence[Any]) -> list[Any]:
    """Those of the items that contain others. Fast if there are none: a body may have a million numbers."""
    kinds = {kind for kind in set(map(type, items)) if issubclass(kind, _CONTAINERS)}
    return [item for item in items if type(item) in kinds] if kinds else []


class _Json:
    """A JSON text, with the positions of the commas and brackets that are outside strings.

    The loop that decodes the pieces calls no function of NumPy that releases the GIL, even for a moment: a thread that
    waits for the GIL then begins its wait again (docs/decisions/024-bodies-in-pieces.md).
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._places, self._depths = _scan(np.frombuffer(raw, np.uint8))
        self._commas: dict[int, Places] = {}  # by depth

    def value(self) -> Any:  # noqa: ANN401 - any JSON value
        """Decodes the whole text. Raises MalformedBodyError, PayloadTooLargeError."""
        return self._value(0, len(self._raw), 0)

    def _value(self, start: int, stop: int, depth: int) -> Any:  # noqa: ANN401
        """Decodes the value at raw[start:stop]; `depth` is the number of lists and objects around it."""
        if stop - start <= MAX_JSON_PIECE_BYTES:
            return decode(self._raw[start:stop], object)
        first, last = bisect_left(self._places, start), bisect_left(self._places, stop)
        if first == last or self._raw[start : self._places[first]].strip():  # no container
            _check_text(stop - start)
            return decode(self._raw[start:stop], object)
        opening, closing = self._places[first], self._places[last - 1]
        kind = self._raw[opening : opening + 1]
        if self._raw[closing : closing + 1] != _CLOSING.get(kind) or self._raw[closing + 1 : stop].strip():
            raise MalformedBodyError("the body is not JSON in UTF-8: its brackets do not match")
        parts = _grouped(opening + 1, closing, self._commas_at(depth + 1))
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

    def _commas_at(self, depth: int) -> Places:
        """Returns the positions of all commas with this number of lists and objects around them."""
        if depth not in self._commas:
            places = self._places[self._depths == depth]
            self._commas[depth] = places[np.frombuffer(self._raw, np.uint8)[places] == _COMMA]
        return self._commas[depth]

    def _piece(self, start: int, stop: int) -> bytes:
        """Returns raw[start:stop]: elements and the commas between them. Raises MalformedBodyError if it is empty."""
        piece = self._raw[start:stop]
        if not piece.strip():
            raise MalformedBodyError("the body is not JSON in UTF-8: a comma has no value after it")
        return piece


def _grouped(start: int, stop: int, commas: Places) -> Iterator[tuple[int, int]]:
    """Cuts raw[start:stop] at those commas that are inside; yields the start and end of each part.

    A part has as many elements as fit in MAX_JSON_PIECE_BYTES, but at least one.
    """
    while stop - start > MAX_JSON_PIECE_BYTES:
        after = bisect_left(commas, start)
        within = bisect_right(commas, start + MAX_JSON_PIECE_BYTES) - 1
        comma = int(commas[max(within, after)]) if after < len(commas) else stop
        if comma >= stop:
            break
        yield start, comma
        start = comma + 1
    yield start, stop


def _scan(data: Bytes) -> tuple[Places, npt.NDArray[np.int32]]:
    """Finds the commas and brackets outside strings: their positions i64[M], and the depth i32[M] after each of them.

    Raises PayloadTooLargeError if there are too many, MalformedBodyError if a string or bracket is not closed.
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
        num_values += len(found) - opened  # each comma and each closing bracket counts as one value
        _check_counts(num_values, num_containers)
        inside, start = int(quoted[-1]), stop
    depths = np.cumsum(np.concatenate(steps), dtype=np.int32)
    if inside or (len(depths) and (depths[-1] != 0 or depths.min() < 0)):
        raise MalformedBodyError("the body is not JSON in UTF-8: it ends inside a string, a list or an object")
    if len(depths) and depths.max() > MAX_JSON_DEPTH:
        raise MalformedBodyError("the body is nested too deeply")
    return np.concatenate(places), depths


def _window_end(data: Bytes, start: int) -> int:
    """Returns the end of the window from `start`. Its last byte is not a backslash, except at the end of data."""
    size = _WINDOW
    while start + size < len(data):
        others = np.flatnonzero(data[start : start + size] != _BACKSLASH)
        if len(others):
            return start + int(others[-1]) + 1
        size *= 2
    return len(data)


def _escaped(window: Bytes) -> npt.NDArray[np.bool_]:
    """Returns bool[N]: whether a byte is escaped, that is, follows an odd number of backslashes.

    The window must not begin inside a sequence of backslashes.
    """
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
