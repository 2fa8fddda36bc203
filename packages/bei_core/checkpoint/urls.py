"""Checkpoints in a tar at a URL (Baseten's REMOTE_URL).

The revision is the SHA-256 of the archive, as `sha256sum` prints it, so a requested revision proves the content. An
unchanged archive is not fetched again: it is recognised by the server's strong ETag, or by Last-Modified and the size.
The URL's query is ignored, because signatures change.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bei_core.checkpoint.archives import unpack
from bei_core.checkpoint.cache import SourceCache
from bei_core.checkpoint.folder import Checkpoint
from bei_core.errors import CheckpointError
from bei_core.storage.backends import redact
from bei_core.storage.errors import TransientError, is_transient_status, translate_os_errors
from bei_core.storage.progress import Progress
from bei_core.storage.transfer import RemoteFile, Stream, digest_of, fetch

_TIMEOUT_S = 60  # for the next byte
_ARCHIVE, _VALIDATOR = "archive", "validator"
_ADVICE = {
    401: "give a token as checkpoint_secret (runtime_secret_name), which is sent as Authorization: Bearer",
    403: "the token (checkpoint_secret, runtime_secret_name) may not read it, or the URL's signature has expired",
    404: "no such file",
}


def fetch_archive(
    url: str, revision: str | None, secret: str | None, root: Path, *, sleep: Callable[[float], object] = time.sleep
) -> Checkpoint:
    """The model in the tar at a URL, fetched into the cache unless it is there.

    The server is not contacted if `revision` is in the cache; otherwise `revision` must be the archive's SHA-256. If
    the server does not answer, the revision that was fetched last is served, with a warning. Raises CheckpointError,
    DiskError.
    """
    cache = SourceCache(root, redact(url))
    if revision and (folder := cache.find_pinned(revision, "archive")):
        return Checkpoint(folder, cache.source, revision)
    try:
        with cache.fetching() as name, translate_os_errors(cache.root):
            archive = _Archive(url, secret, revision, cache, cache.partial(f"archive-{name}"))
            return cache.checkpoint(*archive.fetch(sleep))
    except TransientError as error:
        return cache.find_last(revision, error)


@dataclass
class _Archive:
    """The archive at a URL, and what its server says about it."""

    url: str
    secret: str | None
    wanted: str | None  # the requested revision
    cache: SourceCache
    partial: Path  # the folder it is downloaded to
    ref: str = ""  # the name of the content's ref in the cache; empty if the server does not identify the content
    progress: Progress | None = None  # of the download; None before it begins
    exits: ExitStack = field(default_factory=ExitStack)

    @property
    def source(self) -> str:
        return self.cache.source

    def fetch(self, sleep: Callable[[float], object]) -> tuple[str, Path]:
        """The revision and its published folder. Raises CheckpointError if it is not the requested revision."""
        with self.exits:
            fetch([RemoteFile(_ARCHIVE, self.source, None, self._open)], self.partial, sleep=sleep)
        try:
            if cached := self._find_cached():
                return cached
            found = digest_of(self.partial / _ARCHIVE)
            folder = self._publish(found)
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
        if self.ref:
            self.cache.set_ref(self.ref, found.encode())
        return found, folder

    def _find_cached(self) -> tuple[str, Path] | None:
        """The revision that the server has now and its folder, if it was fetched before."""
        known = self.cache.get_revision(self.ref) if self.ref else None
        folder = self.cache.find(known) if known and self.wanted in {None, known} else None
        return (known, folder) if known and folder else None

    def _publish(self, found: str) -> Path:
        if self.wanted and self.wanted != found:
            raise CheckpointError(f"{self.source} has SHA-256 {found}, not {self.wanted}: changed or tampered with")
        if folder := self.cache.find(found):
            return folder
        unpacked = self.partial / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        return self.cache.publish_checkpoint(unpack(self.partial / _ARCHIVE, unpacked, self.source), found)

    def _open(self, begin: int) -> Stream | None:
        """The archive from byte `begin` on, or from 0 if it has changed meanwhile; None if it is in the cache."""
        validator = self.partial / _VALIDATOR
        if not validator.is_file():  # the server cannot be asked whether the archive is still the same
            begin = 0
        body = self._request(begin, validator.read_text() if begin else "")
        self.exits.callback(body.close)
        begin, size = self._parse_head(body, begin)
        if self._find_cached():
            return None
        etag, modified = _validators(body)
        if text := etag or modified:
            validator.write_text(text)
        else:
            validator.unlink(missing_ok=True)
        if self.progress is None:
            self.progress = self.exits.enter_context(Progress(self.source, size))
            self.progress.skip(begin)
        return Stream(begin, size, self._blocks(body, begin, size, self.progress))

    def _request(self, begin: int, validator: str) -> http.client.HTTPResponse:
        """The server's reply to a request for the archive from `begin` on.

        Raises CheckpointError for an error status, or TransientError if another try may succeed.
        """
        url, user = _without_user(self.url)
        headers = {"User-Agent": "bei", "Accept": "*/*"}
        if begin:
            headers |= {"Range": f"bytes={begin}-", "If-Range": validator}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http and https only, by `resolve`
        if secret := self.secret or user:
            # It is not sent to the target of a redirect.
            request.add_unredirected_header("Authorization", _authorization(secret, self.source))
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # type: ignore[no-any-return] # noqa: S310
        except urllib.error.HTTPError as error:
            error.close()
            is_past_end = error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            if is_past_end:  # begin the next try at byte 0
                (self.partial / _VALIDATOR).unlink(missing_ok=True)
            is_transient = is_past_end or is_transient_status(error.code)
            advice = _ADVICE.get(error.code, "it cannot be fetched now" if is_transient else "it cannot be fetched")
            kind = TransientError if is_transient else CheckpointError
            raise kind(f"{self.source}: HTTP {error.code} {error.reason}: {advice}") from error
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"{self.source} cannot be reached: {getattr(error, 'reason', error)}") from error

    def _parse_head(self, body: http.client.HTTPResponse, asked: int) -> tuple[int, int | None]:
        """The byte at which the body begins, and the archive's size (None if unknown); sets `ref`.

        Raises CheckpointError for a web page, and for another range than the one that was requested.
        """
        headers = body.headers
        if headers.get_content_type() == "text/html":
            raise CheckpointError(
                f"{self.source} answers with a web page (HTML), not a tar: a login page, an error, or not the file's "
                "own URL; write a Hugging Face repository as owner/name"
            )
        length = headers["Content-Length"] or ""
        begin, size = 0, int(length) if length.isdigit() else None
        if body.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers["Content-Range"] or "")
            if found is None or int(found[1]) != asked:
                sent = headers["Content-Range"]
                raise CheckpointError(
                    f"{self.source}: the server sent {sent}, but bytes from {asked} on were requested"
                )
            begin, size = asked, int(found[2]) if found[2].isdigit() else None
        etag, modified = _validators(body)
        is_identified = etag is not None or (modified is not None and size is not None)
        self.ref = hashlib.sha256(f"{etag}\0{modified}\0{size}".encode()).hexdigest() if is_identified else ""
        return begin, size

    def _blocks(
        self, body: http.client.HTTPResponse, position: int, size: int | None, progress: Progress
    ) -> Iterator[bytes]:
        """The blocks of a body that begins at byte `position`. Raises TransientError if the connection breaks."""
        broken: Exception | None = None
        with closing(body):
            while broken is None:
                try:
                    block = body.read(1 << 20)
                except http.client.IncompleteRead as error:
                    block, broken = error.partial, error
                except (OSError, http.client.HTTPException) as error:
                    block, broken = b"", error
                if not block and broken is None:
                    return
                position += len(block)
                progress.add(len(block))
                yield block
        raise TransientError(f"{self.source} is truncated: {position} bytes of {size or 'more'} came") from broken


def _validators(body: http.client.HTTPResponse) -> tuple[str | None, str | None]:
    """The strong ETag and Last-Modified of a reply; None for each that it does not have."""
    etag = body.headers["ETag"]
    return (etag if etag and etag.startswith('"') else None), body.headers["Last-Modified"]


def _without_user(url: str) -> tuple[str, str | None]:
    """A URL without user and password, and an Authorization header with them, or None."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    return parts._replace(netloc=host).geturl(), f"Basic {base64.b64encode(unquote(user).encode()).decode()}"


def _authorization(secret: str, source: str) -> str:
    """The Authorization header for a secret. Raises CheckpointError, without the secret, if it has other characters."""
    if not (secret.isascii() and secret.isprintable()):
        raise CheckpointError(f"{source}: the secret must be a bearer token, in one line")
    return secret if secret.partition(" ")[0] in {"Bearer", "Basic"} else f"Bearer {secret}"
