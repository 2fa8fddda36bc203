"""Compressed files of lines, read as a stream that can be positioned. gz, bz2 and xz are Python's own formats."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa

_BUFFER_BYTES = 1 << 20  # of a read, and of a step on the way to a position


class _Shared(io.RawIOBase):
    """A file that stays open when pyarrow closes this one, which it does when a stream is deleted."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        """See `io.IOBase.readable`."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """See `io.RawIOBase.read`."""
        return self._file.read(size)


class _Decompressed(io.RawIOBase):
    """The content of a file that pyarrow decompresses, frame by frame. Seeking backwards decompresses again from
    the start.

    Raises OSError for content that is damaged or ends too early.
    """

    def __init__(self, codec: str, file: BinaryIO) -> None:
        super().__init__()
        self._codec, self._file = codec, file
        self._restart()

    def readable(self) -> bool:
        """See `io.IOBase.readable`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase.seekable`."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase.readinto`."""
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase.seek`; the end is not known before it is read."""
        if whence == io.SEEK_CUR:
            position += self._position
        elif whence == io.SEEK_END:
            raise io.UnsupportedOperation("the length of a compressed file is not known")
        if position < self._position:
            self._restart()
        while self._position < position:
            content = self._stream.read(min(_BUFFER_BYTES, position - self._position))
            if not content:
                break
            self._position += len(content)
        return self._position

    def tell(self) -> int:
        """See `io.IOBase.tell`."""
        return self._position

    def _restart(self) -> None:
        self._file.seek(0)
        self._stream = pa.CompressedInputStream(pa.PythonFile(_Shared(self._file), "r"), self._codec)
        self._position = 0


def _by_pyarrow(codec: str, file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(_Decompressed(codec, file), _BUFFER_BYTES))


_OPENERS: Mapping[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: cast("BinaryIO", gzip.GzipFile(fileobj=file)),
    ".bz2": lambda file: cast("BinaryIO", bz2.BZ2File(file)),
    ".xz": lambda file: cast("BinaryIO", lzma.LZMAFile(file)),  # noqa: SIM115
    ".zst": partial(_by_pyarrow, "zstd"),
    ".lz4": partial(_by_pyarrow, "lz4"),
}

EXTENSIONS = tuple(_OPENERS)


def strip_extension(path: str) -> str:
    """Returns a path in lower case without the extension that says how the file is compressed."""
    path = path.lower()
    return next((path.removesuffix(end) for end in EXTENSIONS if path.endswith(end)), path)


def open_decompressed(path: str, file: BinaryIO) -> BinaryIO:
    """Returns the content of a file, decompressed as its extension says."""
    opener = _OPENERS.get(PurePosixPath(path.lower()).suffix)
    return file if opener is None else opener(file)
