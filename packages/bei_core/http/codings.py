"""Compression of request and reply bodies with gzip and zstd.

docs/decisions/007-reply-formats.md has the measurements behind the limits.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from bei_core.errors import MalformedBodyError, PayloadTooLargeError, UnknownCodingError
from bei_core.http.limits import LARGE_BYTES, count_bytes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# The supported codings, the best first. The value is how many bytes one millisecond compresses; a longer reply is
# compressed on a thread.
CODINGS = {"zstd": 262_144, "gzip": 65_536}

_STEP = 1_048_576  # the most bytes that one step decompresses

_LEVEL = 1  # vectors hardly compress: a higher level costs more time and saves almost nothing
_MIN_COMPRESSED = 1024  # bytes; a reply that fits in one packet does not arrive faster when it is smaller

_NO_BUDGET: Mapping[str, Any] = {}  # the scope of what no budget counts

# The base-2 logarithm of the largest zstd window, in bytes: 8 MiB, the limit for zstd on the web (RFC 9659). It bounds
# the memory that a compressed body can make the server use.
_ZSTD_WINDOW_LOG = 23


async def compressed(body: bytes, coding: str) -> bytes | None:
    """Returns the compressed body; None if it is too small to benefit. A long body is compressed on a thread."""
    if len(body) <= _MIN_COMPRESSED:
        return None
    if len(body) <= CODINGS[coding]:
        return _compress(body, coding)
    return await asyncio.to_thread(_compress, body, coding)


async def inflated(body: bytes, coding: str, limit: int, scope: Scope) -> bytes:
    """Returns the decompressed body.

    Raises UnknownCodingError, MalformedBodyError if the body is not valid in this coding, PayloadTooLargeError if it
    has more than `limit` bytes once decompressed, OverloadedError if the budget is exceeded.
    """
    name = coding.strip().lower().replace("x-gzip", "gzip")  # its older name
    if name in {"", "identity"}:
        return body
    if name not in CODINGS:
        known = ", ".join((*CODINGS, "identity"))
        raise UnknownCodingError(
            f"content-encoding {coding!r} is not known; known are {known}", param="content-encoding"
        )
    decoder, parts, size = _Inflater(name), list[bytes](), 0
    while not decoder.is_complete:  # in steps, so that the budget is checked while memory grows
        part = await asyncio.to_thread(decoder.more, body)
        body, size = b"", size + len(part)
        if size > limit:
            raise PayloadTooLargeError(f"the body is larger than {limit} bytes once decompressed")
        count_bytes(scope, len(part))
        parts.append(part)
    return await joined(parts, size, scope)


async def joined(parts: list[bytes], size: int, scope: Mapping[str, Any] = _NO_BUDGET) -> bytes:
    """Returns parts of `size` bytes as one.

    Joins a large body on a thread, where `bytes.join` releases the GIL: 32 MB take 30 ms, because the operating system
    zeroes the new memory. Meanwhile the body counts twice; then the list is emptied. Raises OverloadedError if the
    budget is exceeded.
    """
    if size <= LARGE_BYTES:
        return b"".join(parts)
    count_bytes(scope, size)
    body = await asyncio.to_thread(b"".join, parts)
    parts.clear()
    count_bytes(scope, -size)
    return body


def _compress(body: bytes, coding: str) -> bytes:
    if coding == "zstd":
        return zstd.compress(body, level=_LEVEL)
    encoder = zlib.compressobj(_LEVEL, wbits=31)  # 31 selects the gzip format
    return encoder.compress(body) + encoder.flush()


class _Inflater:
    """One compressed stream, decompressed in steps."""

    def __init__(self, coding: str) -> None:
        self.is_complete = False
        self._coding = coding
        self._left = b""  # input that zlib has not used yet; the zstd decoder stores it itself
        self._fault: type[Exception] = zlib.error
        self._decoder: Any = None
        if coding == "gzip":
            self._decoder = zlib.decompressobj(wbits=31)
        else:
            options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
            self._decoder, self._fault = zstd.ZstdDecompressor(options=options), zstd.ZstdError

    def more(self, data: bytes) -> bytes:
        """Returns the next decompressed bytes, at most _STEP. Pass the whole stream in the first call, b"" afterwards.

        Raises MalformedBodyError if the stream is invalid or incomplete, or if more data follows it. A second stream is
        refused because a body could contain a million of them.
        """
        decoder = self._decoder
        try:
            part: bytes = decoder.decompress(self._left or data, _STEP)
        except self._fault as error:
            raise MalformedBodyError(f"the body is not {self._coding}, as its content-encoding says") from error
        self._left = getattr(decoder, "unconsumed_tail", b"")
        self.is_complete = decoder.eof
        if (not part and not decoder.eof) or decoder.unused_data:
            raise MalformedBodyError(f"the body is not one whole {self._coding} stream, as its content-encoding says")
        return part
