"""Replies: their format, body and headers. Large ones are encoded on a thread and sent as fast as the client reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from random import uniform
from typing import Any, NamedTuple

import numpy as np
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bei_core.errors import MethodNotAllowedError, OverloadedError, RequestError, UnauthorizedError
from bei_core.http.codings import CODINGS, compressed, joined
from bei_core.http.error_format import OPENAI, TEI, ErrorFormat
from bei_core.http.limits import MAX_UNCOUNTED_BYTES, hold_bytes, rest_s
from bei_core.http.msgpack import list_head, object_head, packed
from bei_core.metrics import Timings
from bei_core.serving.service import Result

JSON = "application/json"
MSGPACK = "application/msgpack"

_MSGPACK_NAMES = (MSGPACK, "application/x-msgpack")
_JSON_NAMES = (JSON, "application/*", "*/*")  # the most specific name first

_VARY = {"vary": "accept, accept-encoding"}  # added to a reply whose format depends on one of the two headers

# A reply with at most this many numbers is encoded on the event loop, which takes at most 3 ms. A larger one is encoded
# in pieces on a thread.
INLINE_NUMBERS = 32_768

_ITEMS_PER_PIECE = 2048  # of an iterator

BYTES_PER_NUMBER = 16  # at most: four bytes of f32, and its digits in JSON

# A reply with at most this many numbers counts in no budget while it is made.
UNCOUNTED_NUMBERS = MAX_UNCOUNTED_BYTES // BYTES_PER_NUMBER

_PART = 1_048_576  # the most bytes of a reply in one ASGI message

_MAX_ACCEPT = 1024  # bytes of the headers that ask for a format; those of browsers have 200

_SHOWN = 1000  # the most characters of an error message


class Deferred(NamedTuple):
    """The value of a large reply. `make` is called on a thread; its result is encoded in pieces."""

    num_bytes: int  # an estimate of the most memory that it takes
    make: Callable[[], object]  # its lists may be iterators, but only in a list or an object of few items

    @classmethod
    def of(cls, result: Result[Any], make: Callable[[], object]) -> Deferred:
        """Returns the deferred value; estimates its memory from the number of numbers in the model's result."""
        return cls(BYTES_PER_NUMBER * num_numbers(result.rows), make)


class Plain(NamedTuple):
    """A reply's body that is sent as it is, whatever format the request asks for."""

    body: bytes
    media_type: str | None = None


async def complete(
    value: object,
    request_headers: Iterable[tuple[bytes, bytes]],
    timings: Timings | None = None,
    compute_type: str = "",
) -> Response:
    """Encodes a value as a reply, in the format and content coding that the request headers ask for.

    With `timings`, adds TEI's `x-` headers: the compute type, token counts, and times in milliseconds.
    """
    headers: dict[str, str] = {}
    if timings is not None:
        total = f"{timings.total_s * 1e3:.3f}"
        headers = {
            "x-compute-type": compute_type,
            "x-compute-time": total,
            "x-compute-characters": str(timings.num_characters),
            "x-compute-tokens": str(timings.num_tokens),
            "x-total-time": total,
            "x-tokenization-time": f"{timings.tokenization_s * 1e3:.3f}",
            "x-queue-time": f"{timings.queue_s * 1e3:.3f}",
            "x-inference-time": f"{timings.inference_s * 1e3:.3f}",
        }
    media_type, coding = wanted(request_headers)
    if media_type != JSON:
        headers |= _VARY
    named: str | None = media_type
    parts: list[bytes] = []
    if isinstance(value, Plain):
        body, named = value
    elif isinstance(value, Deferred):
        parts = await asyncio.to_thread(_encode, value.make, media_type)
        body = parts.pop() if len(parts) == 1 else b""
    else:
        body = _FORMATS[media_type].encode(value)
    if coding is not None:
        if parts:
            body, parts = await joined(parts, sum(map(len, parts))), []
        if (smaller := await compressed(body, coding)) is not None:
            body = smaller
            headers |= {"content-encoding": coding, **_VARY}
    if parts or len(body) > _PART:
        return _InParts(parts or [body], headers, named)
    return Response(body, headers=headers, media_type=named)


def error_response(error: RequestError, errors: ErrorFormat, inputs: str = "inputs") -> Response:
    """Returns the reply for an error in the format of an API; it is always JSON.

    Error messages name the field `inputs`; this function replaces it by the name of that field in the route's body.
    """
    message, param = error.message, error.param
    if param == "inputs":
        message, param = message.replace("`inputs`", f"`{inputs}`"), inputs
    message = message if len(message) <= _SHOWN else message[:_SHOWN] + "…"  # a message may quote the request
    headers: dict[str, str] = {}
    if isinstance(error, OverloadedError):
        headers |= retry_after(error.retry_after_s, spread=error.cause != "key_limit")
    if isinstance(error, MethodNotAllowedError):
        headers["allow"] = error.allow
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(errors.body(error, message, param)), error.status, headers, JSON)


def retry_after(seconds: int, *, spread: bool = True) -> dict[str, str]:
    """Returns the headers that say when to come again: after `seconds`, with `spread` up to half as much later.

    That is random, so that clients that are refused together do not come back together. Clients with OpenAI's SDK wait
    exactly as long as the header says, and read the one with milliseconds first. The limit of a key is no reason to
    spread: it concerns one client, and the wait is exact.
    """
    wait_s = uniform(seconds, 1.5 * seconds) if spread else seconds  # noqa: S311 - no secret
    return {"retry-after": f"{wait_s:.0f}", "retry-after-ms": f"{1e3 * wait_s:.0f}"}


def retry_lines(seconds: int) -> bytes:
    """Returns `retry_after` as lines of a head."""
    return "".join(f"{name}: {value}\r\n" for name, value in retry_after(seconds).items()).encode()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reply to every request of a path and priority, and of first attempts or retries, until `until`.

    That is a time on the clock of time.monotonic.
    """

    error: OverloadedError
    headers: bytes  # lines, without those that differ between requests
    body: bytes
    until: float
    count: Callable[[OverloadedError], None]  # counts a reply in the metrics
    renew: Callable[[], Refusal | None]  # the refusal of the same kind of request now; None if it is accepted
    request_id: str = ""  # of the one request that it answers; empty: each reply gets a random one

    @classmethod
    def of(
        cls,
        error: OverloadedError,
        response: Response,
        until: float,
        count: Callable[[OverloadedError], None],
        renew: Callable[[], Refusal | None],
    ) -> Refusal:
        """Renders a response."""
        kept = (header for header in response.raw_headers if not header[0].startswith(b"retry-after"))
        headers = b"".join(b"%b: %b\r\n" % header for header in kept)
        return cls(error, headers, bytes(response.body), until, count, renew)


def valid_s(max_queue_wait_s: float) -> float:
    """Returns how long a refusal is used again, in seconds. Longer than the event loop rests, so few are rendered."""
    return 2 * rest_s(max_queue_wait_s)


def num_numbers(rows: object) -> int:
    """Counts the numbers in a model's result."""
    if isinstance(rows, np.ndarray):
        return rows.size
    return sum(map(num_numbers, rows)) if isinstance(rows, list | tuple) else 1


class _InParts(Response):
    """A large reply, sent in parts: each after the client has read the one before, and freed when it is sent.

    The request's BodyLease has the bytes that are not sent yet, and ends when the last part is sent.
    """

    def __init__(self, parts: list[bytes], headers: Mapping[str, str], media_type: str | None) -> None:
        self._parts = parts[::-1]  # the next one is the last
        self._num_unsent = sum(map(len, parts))
        super().__init__(None, headers={**headers, "content-length": str(self._num_unsent)}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the reply."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while self._parts:
            part = self._parts.pop()
            for start in range(0, len(part), _PART):
                hold_bytes(scope, self._num_unsent)
                body = part[start : start + _PART]
                self._num_unsent -= len(body)
                await send({"type": "http.response.body", "body": body, "more_body": self._num_unsent > 0})


class _Format(NamedTuple):
    """How values are encoded, and the bytes around the parts of one that is encoded in pieces."""

    encode: Callable[[object], bytes]
    begin_list: Callable[[int], bytes]  # called with the number of items
    begin_object: Callable[[int], bytes]
    end_list: bytes = b""
    end_object: bytes = b""
    comma: bytes = b""
    colon: bytes = b""

    def items(self, group: list[Any] | np.ndarray[Any, Any]) -> bytes:
        """Encodes at least one item of a list, without the begin and the end of the list."""
        encoded = self.encode(group)
        return encoded[len(self.begin_list(len(group))) : len(encoded) - len(self.end_list)]


_FORMATS = {
    JSON: _Format(
        partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY), lambda _: b"[", lambda _: b"{", b"]", b"}", b",", b":"
    ),
    MSGPACK: _Format(packed, list_head, object_head),
}


def _encode(make: Callable[[], object], media_type: str) -> list[bytes]:
    """Returns the bytes of a value in parts of at most _PART; a larger piece is a part of its own."""
    parts, held, size = list[bytes](), list[bytes](), 0
    for piece in _pieces(make(), _FORMATS[media_type]):
        if held and size + len(piece) > _PART:
            parts.append(b"".join(held))
            held, size = [], 0
        held.append(piece)
        size += len(piece)
    return [*parts, b"".join(held)]


def _pieces(value: object, form: _Format) -> Iterator[bytes]:
    """Encodes a value in pieces, so that no call of an encoder holds the GIL for long.

    An iterator is a list whose items are made for one piece after the other and freed again: to free all items of a
    large list at once holds the GIL, too.
    """
    if isinstance(value, Iterator):
        groups = iter(lambda: list(islice(value, _ITEMS_PER_PIECE)), [])
        parts = [(form.items(group), len(group)) for group in groups]
        yield form.begin_list(sum(count for _, count in parts))
        yield form.comma.join(part for part, _ in parts)
        yield form.end_list
    elif _weight(value) <= INLINE_NUMBERS or not isinstance(value, dict | list | np.ndarray):
        yield form.encode(value)
    elif isinstance(value, dict):
        yield form.begin_object(len(value))
        for index, (name, part) in enumerate(value.items()):
            yield (form.comma if index else b"") + form.encode(name) + form.colon
            yield from _pieces(part, form)
        yield form.end_object
    else:
        yield form.begin_list(len(value))
        for index, group in enumerate(_groups(value)):
            yield form.comma if index else b""
            if len(group) == 1 and _weight(group[0]) > INLINE_NUMBERS:
                yield from _pieces(group[0], form)
            else:
                yield form.items(group)
        yield form.end_list


def _groups(items: list[Any] | np.ndarray[Any, Any]) -> Iterator[list[Any] | np.ndarray[Any, Any]]:
    """Splits items into consecutive groups, each as large as one piece may be, but at least one item."""
    start = weight = 0
    for stop, item in enumerate(items):
        weight += (added := _weight(item))
        if weight > INLINE_NUMBERS and stop > start:
            yield items[start:stop]
            start, weight = stop, added
    yield items[start:]


def _weight(value: object) -> int:
    """Estimates the time to encode a value, in units of one number. Stops to count above INLINE_NUMBERS."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, str):
        return 1 + len(value) // 16
    if isinstance(value, Iterator):
        return INLINE_NUMBERS + 1
    weight = 0
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        weight += _weight(part)
        if weight > INLINE_NUMBERS:
            break
    return max(weight, 1)


def format_of(path: str) -> ErrorFormat:
    """Returns the error format for a path that has no route."""
    return OPENAI if path.startswith(("/v1/", "/v2/")) else TEI


class Wanted(NamedTuple):
    """The reply format that a client asks for."""

    media_type: str
    coding: str | None  # value of content-encoding; None means uncompressed


def wanted(headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
    """Returns the reply format that a request's headers ask for; header names must be lower-case, as in ASGI."""
    accept = accept_encoding = b""
    for name, value in headers:
        if name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"accept-encoding":
            accept_encoding = accept_encoding + b"," + value if accept_encoding else value
    return _wanted(accept, accept_encoding)


@lru_cache(maxsize=64)  # most clients send the same headers with every request
def _wanted(accept: bytes, accept_encoding: bytes) -> Wanted:
    return Wanted(_media_type(_qualities(accept)), _coding(_qualities(accept_encoding)))


def _media_type(accepted: Mapping[str, float]) -> str:
    """Returns the media type: msgpack if the client names it and does not prefer JSON, else JSON."""
    msgpack = max(accepted.get(name, 0.0) for name in _MSGPACK_NAMES)
    json = next((accepted[name] for name in _JSON_NAMES if name in accepted), 0.0)
    return MSGPACK if msgpack > 0 and msgpack >= json else JSON


def _coding(accepted: Mapping[str, float]) -> str | None:
    """Returns the content coding that the client prefers; None for no compression.

    HTTP libraries send `gzip, deflate` by default, but gzip makes replies slower on a fast network. So gzip is used
    only if the client lists it without deflate.
    """
    allowed = [name for name in CODINGS if not (name == "gzip" and "deflate" in accepted)]
    best = max(allowed, key=lambda name: accepted.get(name, 0.0))
    quality = accepted.get(best, 0.0)
    return best if quality > 0 and quality >= accepted.get("identity", 0.0) else None


def _qualities(header: bytes) -> dict[str, float]:
    """Parses an Accept or Accept-Encoding header: maps each name to its quality value; 0 means refused.

    Reads its first _MAX_ACCEPT bytes: 60 kB of commas would hold up the event loop for 28 ms, before a key is checked.
    """
    found = {}
    for part in header[:_MAX_ACCEPT].decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = [text.partition("=")[2] for text in parameters if text.startswith("q=")]
        if name:
            found[name] = _number(given[0]) if given else 1.0
    return found


def _number(text: str) -> float:
    """Parses a quality value from 0 to 1; returns 0 if it is malformed."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
