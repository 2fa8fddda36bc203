"""Compressed bodies, gzip and zstd: of requests and of replies.

docs/decisions/007-reply-formats.md has the measurements behind the limits.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from typing import Any

from starlette.types import Scope

from bei_core.errors import MalformedBodyError, PayloadTooLargeError, ValidationError
from bei_core.http.limits import count_bytes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# The better coding first, each with the bytes that it compresses in a millisecond; a longer reply goes to a thread.
CODINGS = {"zstd": 262_144, "gzip": 65_536}

_LEVEL = 1  # vectors are like noise: a higher level costs more and makes them hardly smaller
_MIN_COMPRESSED = 1024  # bytes; a reply that fits in one packet arrives no sooner for being smaller

# The most memory that a compressed body may demand of its reader: 8 MiB, the limit for zstd on the web (RFC 9659).
_ZSTD_WINDOW_LOG = 23


async def compressed(body: bytes, coding: str) -> bytes | None:
    """The compressed body; None if it is too small to be worth it. A long body is compressed on a thread."""
    if len(body) <= _MIN_COMPRESSED:
        return None
    if len(body) <= CODINGS[coding]:
        return _compress(body, coding)
    return await asyncio.to_thread(_compress, body, coding)


async def inflated(body: bytes, coding: str, limit: int, scope: Scope) -> bytes:
    """The decompressed body.

    Raises ValidationError for an unknown coding, MalformedBodyError if the body is not in it, PayloadTooLargeError if
    it has more than `limit` bytes once decompressed, OverloadedError if the server has no memory left for it.
    """
    name = coding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in CODINGS:
        known = ", ".join((*CODINGS, "identity"))
        raise ValidationError(f"content-encoding {coding!r} is not known; known are {known}", param="content-encoding")
    plain = await asyncio.to_thread(_inflate, body, name, limit)  # even a small body may become a large one
    count_bytes(scope, len(plain))
    return plain


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
    if not decoder.eof or decoder.unused_data:  # it is cut short, or a second stream follows, and maybe a million more
        raise MalformedBodyError(f"the body is not one whole {coding} stream, as its content-encoding says")
    return plain


def _decoder(coding: str) -> tuple[Any, type[Exception]]:
    """The decompressor, and the exception that it raises."""
    if coding == "gzip":
        return zlib.decompressobj(wbits=31), zlib.error
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options), zstd.ZstdError
