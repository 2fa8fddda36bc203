"""The client of object stores: one folder of a store, by its URL. Checkpoints and engines use it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from bei_core.errors import CheckpointError
from bei_core.storage.backends import Backend, FileSystem, Options, backend_of, redact
from bei_core.storage.errors import decode_secret, translate_store_errors


class ObjectStore:
    """A folder of an object store. Nothing is contacted before the first use; every error is a CheckpointError.

    Names are relative to the folder. Raises TransientError if another try may succeed.
    """

    def __init__(self, url: str, secret: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.secret = secret

    def list(self) -> dict[str, Mapping[str, Any]]:
        """All files below the folder by name, each with what the driver lists of it; {"": …} if the URL is a file."""
        files, folder = self.client
        with translate_store_errors(self.url, self.secret):
            found = files.find(folder, detail=True)
        if not isinstance(found, Mapping):  # adlfs's answer to the name of a file
            found = {name: {} for name in found}
        return {_relative(name, folder): info for name, info in found.items()}

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes | None:
        """The content of a file, or its bytes from `begin` up to `end`; None if there is no such file."""
        files, folder = self.client
        span = {} if begin is None else {"start": begin, "end": end}
        with translate_store_errors(f"{self.url}/{name}", self.secret):
            try:
                return bytes(files.cat_file(f"{folder}/{name}", **span))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        files, folder = self.client
        with translate_store_errors(self.url, self.secret):
            files.pipe_file(f"{folder}/{name}", content)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file into the store."""
        files, folder = self.client
        with translate_store_errors(self.url, self.secret):
            files.put_file(str(path), f"{folder}/{name}")

    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""
        files, folder = self.client
        with translate_store_errors(self.url, self.secret), suppress(FileNotFoundError):
            files.rm_file(f"{folder}/{name}")

    def md5_of(self, info: Mapping[str, Any]) -> str | None:
        """The MD5 of a file's content, in hex, from what is listed of the file; None if the store does not say."""
        return backend_of(self.url).md5_of(info)

    def is_md5(self, name: str) -> bool:
        """Whether `md5_of` a file is its MD5 indeed. Called only if the content has another MD5."""
        files, folder = self.client
        with translate_store_errors(f"{self.url}/{name}", self.secret):
            return backend_of(self.url).is_md5(files, f"{folder}/{name}")

    @cached_property
    def client(self) -> tuple[FileSystem, str]:
        """The fsspec file system, and the folder's path on it. To create it takes an SDK a third of a second."""
        return open_store(self.url, self.secret)


def open_store(url: str, secret: str | None = None) -> tuple[FileSystem, str]:
    """The fsspec file system of a URL, and the path on it, without a slash at its end. Nothing is contacted yet.

    Raises CheckpointError for a URL or secret of the wrong form, without the secret, and with the pip command if the
    driver is missing.
    """
    backend = backend_of(url)
    options, path = backend.parse(url)
    if secret:
        options |= _credentials(backend, url, secret)
    with translate_store_errors(url, secret):
        try:
            return backend.open(options), path
        except ImportError as error:
            raise CheckpointError(
                f"{redact(url)}: {backend.name} needs {backend.package}: pip install 'bei-core[{backend.extra}]' "
                f"(or pip install {backend.package}). {error}"
            ) from error


def _credentials(backend: Backend, url: str, secret: str) -> Options:
    values = decode_secret(secret)
    takes = f"{backend.name} takes {backend.credentials_form}"
    if values is None:
        raise CheckpointError(f"{redact(url)}: the secret is not a JSON object; {takes}")
    try:
        return backend.credentials(values)
    except KeyError as error:
        raise CheckpointError(f"{redact(url)}: the secret has no {error.args[0]}; {takes}") from error


def _relative(name: str, folder: str) -> str:
    """An object's name below the folder."""
    return name.removeprefix("/").removeprefix(folder.removeprefix("/")).removeprefix("/")
