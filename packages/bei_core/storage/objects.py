"""One client for every kind of object store. Checkpoints and engines use it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from bei_core.errors import CheckpointError, ConfigError
from bei_core.storage.backends import Backend, FileSystem, Options, backend_of, has_query, redact, redact_input
from bei_core.storage.errors import DriverMissingError, decode_secret, retry_transient, translate_store_errors


class ObjectStore:
    """A folder of an object store, by its URL. Names are relative to the folder.

    Nothing is contacted before the first call. Every error is a CheckpointError, or a TransientError if another try may
    succeed.
    """

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.secret = secret

    def list(self) -> dict[str, Mapping[str, Any]]:
        """All files in the folder by name, each with what the driver lists of it; {"": …} if the URL is a file."""
        with self._open() as (files, folder):
            found = files.find(folder, detail=True)
        if not isinstance(found, Mapping):  # adlfs gives a list if the URL is a file
            found = {name: {} for name in found}
        base = folder.removeprefix("/")
        return {name.removeprefix("/").removeprefix(base).removeprefix("/"): info for name, info in found.items()}

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes | None:
        """The content of a file, or its bytes from `begin` up to `end`; None if the file does not exist."""
        span = {} if begin is None else {"start": begin, "end": end}
        with self._open(name) as (files, path):
            try:
                return bytes(files.cat_file(path, **span))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file. If it fails, it is tried again."""

        def put() -> None:
            with self._open(name) as (files, path):
                files.pipe_file(path, content)

        retry_transient(put, f"{self.url}/{name}")

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file into the store."""
        with self._open(name) as (files, path):
            files.put_file(str(local), path)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists. If it fails, it is tried again."""

        def remove() -> None:
            with self._open(name) as (files, path), suppress(FileNotFoundError):
                files.rm_file(path)

        retry_transient(remove, f"{self.url}/{name}")

    def md5_of(self, info: Mapping[str, Any]) -> str | None:
        """The MD5 of a file's content, in hex, from what `list` says of the file; None if the store does not say."""
        return backend_of(self.url).md5_of(info)

    def is_md5(self, name: str) -> bool:
        """Whether `md5_of` gives the MD5 of this file. Called only if the content has another MD5."""
        with self._open(name) as (files, path):
            return backend_of(self.url).is_md5(files, path)

    @cached_property
    def client(self) -> tuple[FileSystem, str]:
        """The fsspec file system, and the folder's path on it. An SDK takes a third of a second to create it."""
        return open_store(self.url, self.secret)

    @contextmanager
    def _open(self, name: str = "") -> Iterator[tuple[FileSystem, str]]:
        """The file system and the path of a file, or of the folder; translates errors that the block raises."""
        files, folder = self.client
        with translate_store_errors(f"{self.url}/{name}".rstrip("/"), self.secret):
            yield files, f"{folder}/{name}" if name else folder


def open_store(url: str, secret: str | None = None) -> tuple[FileSystem, str]:
    """The fsspec file system of a URL, and the path on it without a slash at its end. Nothing is contacted yet.

    Raises CheckpointError for a URL or secret of the wrong form (its text has no secret), and DriverMissingError if the
    driver is not installed.
    """
    backend = backend_of(url)
    options, path = backend.parse(url)
    if secret:
        options |= _credentials(backend, url, secret)
    with translate_store_errors(url, secret):
        try:
            return backend.open(options), path
        except ImportError as error:
            raise DriverMissingError(
                f"{redact(url)}: {backend.name} needs {backend.package}: pip install 'bei-core[{backend.extra}]' "
                f"(or pip install {backend.package}). {error}"
            ) from error


def _credentials(backend: Backend, url: str, secret: str) -> Options:
    """The driver's options in a secret."""
    values = decode_secret(secret)
    takes = f"{backend.name} takes {backend.credentials_form}"
    if values is None:
        raise CheckpointError(f"{redact(url)}: the secret is not a JSON object; {takes}")
    try:
        return backend.credentials(values)
    except KeyError as error:
        raise CheckpointError(f"{redact(url)}: the secret has no {error.args[0]}; {takes}") from error


def matches_glob(path: str, pattern: str) -> bool:
    """Whether the glob `pattern` matches `path`, by the rules of fsspec."""
    from fsspec.utils import glob_translate

    return re.match(glob_translate(pattern), path) is not None


def absolute_location(location: str) -> str:
    """Returns a location that does not depend on the working folder: an absolute path, or a URL of other machines.

    `file://` and `local://` are paths of this machine. Raises ConfigError if the path after them is relative.
    """
    scheme, is_url, path = location.partition("://")
    if is_url and scheme.lower() not in {"file", "local"}:
        return location
    if is_url and not path.startswith("/"):
        raise ConfigError(f"{location} has no absolute path; write {scheme}:///folder")
    return str(Path(path if is_url else location).absolute())


class StoreFile(io.RawIOBase):
    """An open file of a store. What its driver raises becomes a CheckpointError, as in `translate_store_errors`."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        super().__init__()
        self._file, self._url = file, url

    def readable(self) -> bool:
        """See `io.IOBase.readable`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase.seekable`."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """See `io.RawIOBase.read`."""
        with translate_store_errors(self._url, show=redact_input):
            return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase.readinto`."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase.seek`."""
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """See `io.IOBase.tell`."""
        return self._file.tell()


def open_location(location: str, hf_token: str | None = None) -> tuple[FileSystem, str]:
    """As `open_store`, also for a path of this machine and for a data set of the hub (`hf://datasets/owner/name/…`).

    `?` and `#` are parts of names and globs here; in other URLs a query or a fragment begins with them. Raises
    ConfigError for a URL with a query, which may be a signature.
    """
    if has_query(location):
        raise ConfigError(f"{redact(location)}: the URL of an input has no query; the SDK finds credentials itself")
    if location.startswith("hf://"):
        import fsspec

        # Another job of this process may have read an earlier state of the data set.
        return fsspec.filesystem("hf", token=hf_token, skip_instance_cache=True), location.removeprefix("hf://")
    if "://" not in location:
        return backend_of("file:///").open({}), str(Path(location).absolute())
    folder = re.match(r"[^:]+://[^/?#]+[^?#]*(?=/[^/?#]*[?#])", location)
    if folder is None:
        return open_store(location)
    files, path = open_store(folder[0])
    return files, path + location[folder.end() :].rstrip("/")
