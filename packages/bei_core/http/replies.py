"""Replies: their format, body and headers. A reply is complete when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import orjson
from starlette.responses import Response

from bei_core.errors import MethodNotAllowedError, OverloadedError, RequestError, UnauthorizedError
from bei_core.http.codings import CODINGS, compressed
from bei_core.http.error_format import ErrorFormat
from bei_core.http.msgpack import packed
from bei_core.metrics import Timings

JSON = "application/json"
MSGPACK = "application/msgpack"

_MSGPACK_NAMES = (MSGPACK, "application/x-msgpack")
_JSON_NAMES = (JSON, "application/*", "*/*")  # the most specific first

_VARY = {"vary": "accept, accept-encoding"}  # of a reply in which one of the two headers changed something

_SHOWN = 1000  # characters of an error's text


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
    if isinstance(value, Plain):
        body, named = value
    else:
        named = media_type
        body = packed(value) if named == MSGPACK else orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if coding is not None and (smaller := await compressed(body, coding)) is not None:
        body = smaller
        headers |= {"content-encoding": coding, **_VARY}
    return Response(body, headers=headers, media_type=named)


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
