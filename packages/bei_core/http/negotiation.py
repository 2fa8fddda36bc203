"""Formats of bodies: which one a caller takes, JSON or msgpack, plain or compressed; and compressed bodies in.

docs/decisions/007-reply-formats.md has the figures behind the choices.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bei_core.errors import MalformedBodyError, PayloadTooLargeError, ValidationError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON = "application/json"
MSGPACK = "application/msgpack"

_MSGPACK_NAMES = (MSGPACK, "application/x-msgpack")
_JSON_NAMES = (JSON, "application/*", "*/*")  # the closest first

# The better first, each with the bytes that it needs up to a millisecond for: more go to a thread.
_CODINGS = {"zstd": 262_144, "gzip": 65_536}

_LEVEL = 1  # vectors are noise: no level makes them much smaller, and higher ones cost more
_MIN_COMPRESSED = 1024  # bytes; what fits in one packet arrives no sooner for being smaller

# The most memory that a compressed body may ask a reader to keep: 8 MiB, as RFC 9659 has it for zstd on the web.
_ZSTD_WINDOW_LOG = 23


class Wanted(NamedTuple):
    """How a caller takes a reply."""

    media_type: str
    coding: str | None  # of the content; None: as it is


def wanted(headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
    """What a request's headers say of the reply; lower-case names, as ASGI has them."""
    accept = accept_encoding = b""
    for name, value in headers:
        if name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"accept-encoding":
            accept_encoding = accept_encoding + b"," + value if accept_encoding else value
    return _wanted(accept, accept_encoding)


@lru_cache(maxsize=64)  # clients repeat themselves
def _wanted(accept: bytes, accept_encoding: bytes) -> Wanted:
    return Wanted(_media_type(_qualities(accept)), _coding(_qualities(accept_encoding)))


def _media_type(accepted: Mapping[str, float]) -> str:
    """The format: msgpack where it is named and JSON is not liked better."""
    msgpack = max(accepted.get(name, 0.0) for name in _MSGPACK_NAMES)
    json = next((accepted[name] for name in _JSON_NAMES if name in accepted), 0.0)
    return MSGPACK if msgpack > 0 and msgpack >= json else JSON


def _coding(accepted: Mapping[str, float]) -> str | None:
    """The coding that the caller likes best, if one that is worth it.

    With `deflate` beside it, gzip is what HTTP libraries list by themselves; to do as they say would slow down everyone
    on a fast network. Who lists gzip without it asks for it.
    """
    allowed = [name for name in _CODINGS if not (name == "gzip" and "deflate" in accepted)]
    best = max(allowed, key=lambda name: accepted.get(name, 0.0))
    liked = accepted.get(best, 0.0)
    return best if liked > 0 and liked >= accepted.get("identity", 0.0) else None


def _qualities(header: bytes) -> dict[str, float]:
    """The names in an Accept header of either sort, each with how much it is liked; 0: not taken."""
    found = {}
    for part in header.decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = [text.partition("=")[2] for text in parameters if text.startswith("q=")]
        if name:
            found[name] = _number(given[0]) if given else 1.0
    return found


def _number(text: str) -> float:
    """A quality; 0 for what is none."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0


async def compressed(body: bytes, coding: str) -> bytes | None:
    """The body under a coding; None for one too small to be worth it."""
    if len(body) <= _MIN_COMPRESSED:
        return None
    if len(body) <= _CODINGS[coding]:
        return _compress(body, coding)
    return await asyncio.to_thread(_compress, body, coding)


async def inflated(body: bytes, coding: str, limit: int) -> bytes:
    """What a compressed body says.

    Raises ValidationError for an unknown coding, MalformedBodyError for what is not of it, PayloadTooLargeError for
    more than `limit`.
    """
    name = coding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in _CODINGS:
        known = ", ".join((*_CODINGS, "identity"))
        raise ValidationError(f"content-encoding {coding!r} is not known; known are {known}", param="content-encoding")
    return await asyncio.to_thread(_inflate, body, name, limit)  # a small one may be the start of a very large one


def _compress(body: bytes, coding: str) -> bytes:
    if coding == "zstd":
        return zstd.compress(body, level=_LEVEL)
    encoder = zlib.compressobj(_LEVEL, wbits=31)  # 31: with gzip's header
    return encoder.compress(body) + encoder.flush()


def _inflate(body: bytes, coding: str, limit: int) -> bytes:
    decoder, fault = _decoder(coding)
    try:
        plain: bytes = decoder.decompress(body, limit + 1)
    except fault as error:
        raise MalformedBodyError(f"the body is not {coding}, as its content-encoding says") from error
    if len(plain) > limit:
        raise PayloadTooLargeError(f"the body is larger than {limit} bytes once decompressed")
    if not decoder.eof or decoder.unused_data:  # a second member could be the first of a million
        raise MalformedBodyError(f"the body is not one whole {coding} stream, as its content-encoding says")
    return plain


def _decoder(coding: str) -> tuple[Any, type[Exception]]:
    """What decompresses, and what it raises."""
    if coding == "gzip":
        return zlib.decompressobj(wbits=31), zlib.error
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options), zstd.ZstdError


def msgpack(value: object) -> bytes:
    """A value in msgpack; NumPy arrays as lists, of 32-bit floats where that is what they hold."""
    return _ENCODER.encode(value)


def _plain(value: object) -> object:
    """What msgspec does not know, as something that it does."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32 and value.ndim > 0:
            return msgspec.Raw(_packed(value))
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"this is a bug: a reply holds a {type(value).__name__}")


def _packed(array: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Lists of 32-bit floats, written as msgpack all at once: msgspec would make an object of every number."""
    if array.ndim > 1:
        return _head(len(array)) + b"".join(_packed(part) for part in array)
    cells = np.empty((len(array), 5), np.uint8)
    cells[:, 0] = 0xCA  # a float of 32 bits follows
    cells[:, 1:] = array.astype(">f4").view(np.uint8).reshape(-1, 4)
    return _head(len(array)) + cells.tobytes()


def _head(length: int) -> bytes:
    """The start of a msgpack list."""
    if length < 16:
        return bytes([0x90 | length])
    return struct.pack(">BH", 0xDC, length) if length < 65_536 else struct.pack(">BI", 0xDD, length)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
