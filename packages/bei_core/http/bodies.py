"""Large JSON bodies: counted before they are decoded, then decoded in pieces.

A JSON decoder holds the GIL until it returns, even on another thread, and blocks the event loop for that time. A body
is therefore cut at commas into pieces of bounded size. NumPy finds the commas, because NumPy releases the GIL.
"""

from __future__ import annotations

import asyncio
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
__all__ = ["INLINE_BODY_BYTES", "Undecoded", "convert_large", "free", "inflated", "joined", "measure", "memory_of"]

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

_QUOTE, _BACKSLASH, _COMMA, _UNICODE = b'"\\,u'
_STEPS = np.zeros(256, np.int8)  # i8[256], indexed by byte: the change in nesting depth
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_CLOSING = {b"[": b"]", b"{": b"}"}

# u8[256]: how many bytes a character takes in memory, by its first byte in UTF-8; 0 for the other bytes.
_WIDTHS = np.repeat(np.array([1, 0, 1, 2, 4], np.uint8), [0x80, 0x40, 4, 0x2C, 0x10])

# The most memory in bytes, without its characters, of a number and its place in a list, of a text, and of a list or an
# object with few fields.
_VALUE_BYTES, _TEXT_BYTES, _CONTAINER_BYTES = 48, 80, 256

_MAX_NAME = 1024  # the most bytes of a field name if the value of the field is large
_NAME = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:\s*')


class Undecoded:
    """A JSON body of any size, not decoded yet, and the memory that it will take."""

    def __init__(self, raw: bytes) -> None:
        """Scans a body that is decoded in pieces. Raises PayloadTooLargeError, MalformedBodyError."""
        self._raw = raw
        self._pieces = _Json(raw) if len(raw) > MAX_WHOLE_BYTES else None

    @property
    def num_bytes(self) -> int:
        """The most memory that the decoded body and its scan take, in bytes; 0 for a body that is decoded at once."""
        return 0 if self._pieces is None else self._pieces.num_bytes

    def decode(self, schema: type[ValueT]) -> ValueT:
        """Decodes the body into `schema`. Call it on a thread. Raises the same errors as `schemas.common.decode`."""
        if self._pieces is None:
            return decode(self._raw, schema)
        value = self._pieces.value()
        return value if schema is object else convert_large(value, schema)


async def measure(raw: bytes) -> Undecoded:
    """Returns the body, ready to decode. Scans a large one on a thread. Raises the same errors as `Undecoded`."""
    return Undecoded(raw) if len(raw) <= MAX_WHOLE_BYTES else await asyncio.to_thread(Undecoded, raw)


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
        self._places, self._depths, self.num_bytes = _scan(np.frombuffer(raw, np.uint8))
        self.num_bytes += self._places.nbytes + self._depths.nbytes
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
        if last - first == 2 and not self._raw[opening + 1 : closing].strip():  # spaces only
            return decode(kind + _CLOSING[kind], object)
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


def _scan(data: Bytes) -> tuple[Places, npt.NDArray[np.int32], int]:
    """Finds the commas and brackets outside strings: their positions i64[M], and the depth i32[M] after each of them.

    The third result is the most memory of the decoded value, in bytes. Raises PayloadTooLargeError if there are too
    many, MalformedBodyError if a string or bracket is not closed.
    """
    places, steps, inside, start = [], [], 0, 0
    num_values, num_containers, num_quotes, texts = 1, 0, 0, _TextMemory()
    while start < len(data):
        stop = _window_end(data, start)
        window = data[start:stop]
        escaped = _escaped(window)
        quotes = (window == _QUOTE) & ~escaped
        quoted = np.bitwise_xor.accumulate(quotes).view(np.uint8) ^ inside
        found = np.flatnonzero(((window == _COMMA) | (_STEPS[window] != 0)) & (quoted == 0))
        places.append(found + start)
        steps.append(_STEPS[window[found]])
        opened = int(np.count_nonzero(steps[-1] > 0))
        num_containers += opened
        num_values += len(found) - opened  # each comma and each closing bracket counts as one value
        _check_counts(num_values, num_containers)
        num_quotes += int(np.count_nonzero(quotes))
        at = np.flatnonzero(escaped)
        texts.add(data, start, stop, found, at[window[at] == _UNICODE])
        inside, start = int(quoted[-1]), stop
    depths = np.cumsum(np.concatenate(steps), dtype=np.int32)
    _check_depths(depths, is_open=bool(inside))
    num_bytes = _VALUE_BYTES * num_values + _TEXT_BYTES * (num_quotes // 2) + _CONTAINER_BYTES * num_containers
    return np.concatenate(places), depths, num_bytes + texts.num_bytes


class _TextMemory:
    """The memory of the characters of decoded texts: Python stores all of a text as wide as its widest character.

    A part between two commas or brackets has at most one text and its name.
    """

    def __init__(self) -> None:
        self._ended = 0  # bytes of the parts that have ended
        self._num_chars, self._width = 0, 1  # of the part that continues in the next window

    @property
    def num_bytes(self) -> int:
        """The bytes of all windows until now."""
        return self._ended + self._num_chars * self._width

    def add(self, data: Bytes, start: int, stop: int, cuts: Places, escapes: Places) -> None:
        """Adds the window data[start:stop], cut before `cuts`; each of `escapes` is the u of an escaped character."""
        window, firsts = data[start:stop], np.concatenate([[0], cuts])
        num_chars, widths = np.diff(firsts, append=len(window)), np.ones(len(firsts), np.int64)
        if len(escapes) or window.max() >= 0x80:
            each = _WIDTHS[window]
            for step in (-1, 1, 2, 3, 4):  # these bytes and the u are one character
                each[np.minimum(escapes + step, len(each) - 1)] = 0
            each[escapes] = _escaped_widths(data, escapes + start)
            num_chars = np.add.reduceat(each != 0, firsts, dtype=np.int64)
            widths = np.maximum.reduceat(each, firsts).astype(np.int64)
        num_chars[0] += self._num_chars
        widths[0] = max(widths[0], self._width)
        self._ended += int(num_chars[:-1] @ widths[:-1])
        self._num_chars, self._width = int(num_chars[-1]), int(widths[-1])


def _escaped_widths(data: Bytes, escapes: Places) -> Bytes:
    """Returns u8[N]: how wide each escaped character is, by its first two digits; of a surrogate pair 4 and 2."""
    first, second = (data[np.minimum(escapes + step, len(data) - 1)] | 0x20 for step in (1, 2))
    is_pair = (first == ord("d")) & np.isin(second, list(b"89ab"))
    return np.where(is_pair, 4, np.where((first == ord("0")) & (second == ord("0")), 1, 2)).astype(np.uint8)


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


def _check_depths(depths: npt.NDArray[np.int32], *, is_open: bool) -> None:
    if is_open or (len(depths) and (depths[-1] != 0 or depths.min() < 0)):
        raise MalformedBodyError("the body is not JSON in UTF-8: it ends inside a string, a list or an object")
    if len(depths) and depths.max() > MAX_JSON_DEPTH:
        raise MalformedBodyError("the body is nested too deeply")


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
