"""Replies: their format, body and headers. A large one is made on a thread, and sent as fast as the client reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bei_core.errors import MethodNotAllowedError, OverloadedError, RequestError, UnauthorizedError
from bei_core.http.codings import CODINGS, compressed
from bei_core.http.error_format import OPENAI, TEI, ErrorFormat
from bei_core.http.msgpack import packed
from bei_core.metrics import Timings
from bei_core.serving.service import Result

JSON = "application/json"
MSGPACK = "application/msgpack"

_MSGPACK_NAMES = (MSGPACK, "application/x-msgpack")
_JSON_NAMES = (JSON, "application/*", "*/*")  # the most specific first

_VARY = {"vary": "accept, accept-encoding"}  # of a reply in which one of the two headers changed something

# Numbers of a reply that are written on the event loop, in 3 ms at most; more are written on a thread, in pieces.
INLINE_NUMBERS = 32_768

BYTES_PER_NUMBER = 16  # at most: four of f32, and its digits

_PART = 1_048_576  # bytes of a reply that are sent at once

_SHOWN = 1000  # characters of an error's text


class Deferred(NamedTuple):
    """A reply's value that is large: `make` is called on a thread, and what it returns is written in pieces."""

    num_bytes: int  # of memory, at most, roughly
    make: Callable[[], object]

    @classmethod
    def of(cls, result: Result[Any], make: Callable[[], object]) -> Deferred:
        """The value that `make` makes of a model's result."""
        return cls(BYTES_PER_NUMBER * num_numbers(result.rows), make)


class Plain(NamedTuple):
    """A reply's body that is neither JSON nor msgpack."""

    body: bytes
    media_type: str | None = None


async def complete(
    value: object,
    request_headers: Iterable[tuple[bytes, bytes]],
    timings: Timings | None = None,
    compute_type: str = "",
) -> Response:
    """The reply with this value, in the format and the coding that the client takes.

    With `timings` it has TEI's `x-` headers: what computed it and where the time went, in milliseconds.
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
    if isinstance(value, Plain):
        body, named = value
    elif isinstance(value, Deferred):
        body = await asyncio.to_thread(_encode, value.make, media_type)
    else:
        body = packed(value) if named == MSGPACK else orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if coding is not None and (smaller := await compressed(body, coding)) is not None:
        body = smaller
        headers |= {"content-encoding": coding, **_VARY}
    return (Response if len(body) <= _PART else _InParts)(body, headers=headers, media_type=named)


def error_response(error: RequestError, errors: ErrorFormat, inputs: str = "inputs") -> Response:
    """The reply for an error, in an API's format; always JSON.

    `inputs` is the name of the inputs in the route's body; error texts call them `inputs` until here.
    """
    message, param = error.message, error.param
    if param == "inputs":
        message, param = message.replace("`inputs`", f"`{inputs}`"), inputs
    message = message if len(message) <= _SHOWN else message[:_SHOWN] + "…"  # it may repeat what the client sent
    headers = {}
    if isinstance(error, OverloadedError):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowedError):
        headers["allow"] = error.allow
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(errors.body(error, message, param)), error.status, headers, JSON)


def num_numbers(rows: object) -> int:
    """How many numbers there are in a model's result."""
    if isinstance(rows, np.ndarray):
        return rows.size
    return sum(map(num_numbers, rows)) if isinstance(rows, list | tuple) else 1


class _InParts(Response):
    """A large reply: a part of it is sent when the client has taken those before, so that only one waits in a buffer.

    The request's lease of memory ends when the last part is sent.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the reply."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), _PART):
            part = bytes(self.body[start : start + _PART])
            await send({"type": "http.response.body", "body": part, "more_body": start + _PART < len(self.body)})


def _encode(make: Callable[[], object], media_type: str) -> bytes:
    value = make()
    return packed(value) if media_type == MSGPACK else b"".join(_pieces(value))


def _pieces(value: object) -> Iterator[bytes]:
    """The JSON of a value in pieces, none of which keeps Python's lock for long."""
    if _weight(value) <= INLINE_NUMBERS or not isinstance(value, dict | list | np.ndarray):
        yield orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    elif isinstance(value, dict):
        for index, (name, part) in enumerate(value.items()):
            yield (b"," if index else b"{") + orjson.dumps(name) + b":"
            yield from _pieces(part)
        yield b"}"
    else:
        for index, group in enumerate(_groups(value)):
            yield b"," if index else b"["
            if len(group) == 1:
                yield from _pieces(group[0])
            else:
                yield orjson.dumps(group, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        yield b"]"


def _groups(items: list[Any] | np.ndarray[Any, Any]) -> Iterator[list[Any] | np.ndarray[Any, Any]]:
    """The items in their order, together as many as one piece may hold, at least one."""
    start = weight = 0
    for stop, item in enumerate(items):
        weight += _weight(item)
        if weight > INLINE_NUMBERS and stop > start:
            yield items[start:stop]
            start, weight = stop, _weight(item)
    yield items[start:]


def _weight(value: object) -> int:
    """How long a value takes to write, in numbers."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, str):
        return 1 + len(value) // 16
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 1


def format_of(path: str) -> ErrorFormat:
    """The format of errors of a path that is not served."""
    return OPENAI if path.startswith(("/v1/", "/v2/")) else TEI


class Wanted(NamedTuple):
    """The format in which a client wants the reply."""

    media_type: str
    coding: str | None  # content-encoding; None: uncompressed


def wanted(headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
    """The format that a request's headers ask for; their names are lower-case, as in ASGI."""
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
    """The format: msgpack if the client names it and does not prefer JSON, else JSON."""
    msgpack = max(accepted.get(name, 0.0) for name in _MSGPACK_NAMES)
    json = next((accepted[name] for name in _JSON_NAMES if name in accepted), 0.0)
    return MSGPACK if msgpack > 0 and msgpack >= json else JSON


def _coding(accepted: Mapping[str, float]) -> str | None:
    """The coding that the client prefers; None if it is not worth its time.

    HTTP libraries list `gzip, deflate` by default, and gzip makes replies slower on a fast network. So it counts only
    if the client lists it without deflate.
    """
    allowed = [name for name in CODINGS if not (name == "gzip" and "deflate" in accepted)]
    best = max(allowed, key=lambda name: accepted.get(name, 0.0))
    quality = accepted.get(best, 0.0)
    return best if quality > 0 and quality >= accepted.get("identity", 0.0) else None


def _qualities(header: bytes) -> dict[str, float]:
    """The names in an Accept or Accept-Encoding header with their quality values; 0 means refused."""
    found = {}
    for part in header.decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = [text.partition("=")[2] for text in parameters if text.startswith("q=")]
        if name:
            found[name] = _number(given[0]) if given else 1.0
    return found


def _number(text: str) -> float:
    """A quality value; 0 if it is malformed."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
