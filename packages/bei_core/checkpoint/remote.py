"""A checkpoint packed as a tar behind a URL (Baseten's REMOTE_URL).

Its revision is the SHA-256 of the archive, which `sha256sum` gives: pinned, it proves that the content is what was
meant. A server's strong ETag, or its Last-Modified with the size, stands for the content that it came with, so that an
unchanged archive is asked about and not fetched again. The URL's query counts for nothing: signatures change.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from bei_core.checkpoint.archives import unpack
from bei_core.checkpoint.folder import Checkpoint
from bei_core.checkpoint.place import LAST, Place
from bei_core.errors import CheckpointError
from bei_core.storage.disk import writing
from bei_core.storage.objects import shown
from bei_core.storage.progress import Progress

log = logging.getLogger(__name__)

_TIMEOUT_S = 60  # without a byte
_PAUSES_S = (0.5, 2.0, 5.0)  # before each further try
_ARCHIVE, _VALIDATOR = "archive", "validator"
_ADVICE = {
    401: "give a token as checkpoint_secret (runtime_secret_name), which is sent as Authorization: Bearer",
    403: "the token (checkpoint_secret, runtime_secret_name) may not read it, or the URL's signature has expired",
    404: "no such file",
}


@dataclass(frozen=True)
class _Reply:
    """A reply whose body is not yet read."""

    body: http.client.HTTPResponse
    begin: int  # byte of the archive that the body starts at
    size: int | None  # bytes of the whole archive
    etag: str | None  # a strong one
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range takes."""
        return self.etag or self.modified

    @property
    def ref(self) -> str | None:
        """Another for another content, where the server says enough."""
        if self.etag is None and (self.modified is None or self.size is None):
            return None
        return hashlib.sha256(f"{self.etag}\0{self.modified}\0{self.size}".encode()).hexdigest()


class _UnreachableError(CheckpointError):
    """The server did not answer, or stopped in the middle."""


def fetch_archive(
    url: str, revision: str | None, secret: str | None, root: Path, *, pause: Callable[[float], object] = time.sleep
) -> Checkpoint:
    """The model in the tar at a URL, fetched into the cache unless it is there.

    A `revision` that is in the cache needs no server; any other must be the archive's SHA-256. Where the server is out
    of reach, what was fetched last serves, with a warning. Raises CheckpointError that says what to do.
    """
    place = Place(root, shown(url))
    if revision and (folder := place.pinned(revision, "archive")):
        return Checkpoint(folder, place.source, revision)
    try:
        with place.alone() as name:
            found, folder = _Download(url, secret, place, place.partial(f"archive-{name}"), pause).fetched(revision)
    except _UnreachableError as fault:
        last = place.last()
        if revision or last is None:
            raise
        log.warning("%s Serving revision %s, which was fetched last.", fault, last[0])
        found, folder = last
    place.note(LAST, found)
    return Checkpoint(folder, place.source, found)


@dataclass(frozen=True)
class _Download:
    """One archive on its way."""

    url: str
    secret: str | None
    place: Place
    partial: Path  # where what has come is kept
    pause: Callable[[float], object]

    def fetched(self, revision: str | None) -> tuple[str, Path]:
        """Revision and published folder. Raises CheckpointError where it is not the revision that was asked for."""
        reply = self._ask()
        with closing(reply.body):
            known = self.place.noted(reply.ref) if reply.ref else None
            if known and revision in {None, known} and (folder := self.place.find(known)):
                return known, folder
            with writing(self.place.folder):
                self.partial.mkdir(parents=True, exist_ok=True)
                reply = self._receive(reply)
        with writing(self.place.folder):
            found = _sha256(self.partial / _ARCHIVE)
        folder = self._published(found, revision)
        if reply.ref:
            self.place.note(reply.ref, found)
        return found, folder

    def _published(self, found: str, revision: str | None) -> Path:
        """The folder of the archive that has come. Whatever happens, the archive is not kept."""
        try:
            if revision and revision != found:
                raise CheckpointError(
                    f"{self.place.source} has SHA-256 {found}, not {revision}: changed or tampered with"
                )
            if folder := self.place.find(found):
                return folder
            draft = self.partial / "unpacked"
            shutil.rmtree(draft, ignore_errors=True)
            with writing(self.place.folder):
                root = unpack(self.partial / _ARCHIVE, draft, self.place.source)
            self.place.check(root, found)
            return self.place.publish(root, found)
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _ask(self) -> _Reply:
        """A reply that goes on where the part ends, if the archive is still the one that the part is of.

        Raises CheckpointError: _UnreachableError after several tries.
        """
        for pause_s in _PAUSES_S:
            try:
                return self._opened(*_rest_of(self.partial))
            except _UnreachableError as fault:
                log.warning("%s; trying again", fault)
                self.pause(pause_s)
        return self._opened(*_rest_of(self.partial))

    def _opened(self, headers: dict[str, str], begin: int) -> _Reply:
        """The reply. Raises CheckpointError for an error of the server, _UnreachableError where there is none."""
        url, secret = _without_user(self.url)
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http and https only, by `resolve`
        if secret := self.secret or secret:
            # Not sent on to where a redirect leads.
            request.add_unredirected_header("Authorization", _authorization(secret, self.place.source))
        try:
            body = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as fault:
            return self._refused(fault, headers, begin)
        except (OSError, http.client.HTTPException) as fault:
            reason = getattr(fault, "reason", fault)
            raise _UnreachableError(f"{self.place.source} is out of reach: {reason}") from fault
        return _reply(body, begin, self.place.source)

    def _refused(self, fault: urllib.error.HTTPError, headers: dict[str, str], begin: int) -> _Reply:
        """A reply from the beginning, where there is nothing after the part. Else raises what the status means."""
        fault.close()
        if fault.code == 416 and begin:
            return self._opened({name: value for name, value in headers.items() if "Range" not in name}, 0)
        kind = _UnreachableError if fault.code in {408, 425, 429} or fault.code >= 500 else CheckpointError
        advice = _ADVICE.get(
            fault.code, "it cannot be fetched now" if kind is _UnreachableError else "it cannot be fetched"
        )
        raise kind(f"{self.place.source}: HTTP {fault.code} {fault.reason}: {advice}") from fault

    def _receive(self, reply: _Reply) -> _Reply:
        """The last reply; the archive is whole then. Asks for the rest where the connection breaks."""
        with Progress(self.place.source, reply.size) as progress:
            progress.skip(reply.begin)
            pauses = list(_PAUSES_S)
            while True:
                with closing(reply.body):
                    whole, now = _read(reply, self.partial, progress)
                if whole:
                    return reply
                if now > reply.begin:
                    pauses = list(_PAUSES_S)  # it got on: as many tries again
                if not pauses:
                    raise _UnreachableError(
                        f"{self.place.source} is truncated: {now} of {reply.size or 'more'} bytes came"
                    )
                log.warning("%s broke off at byte %d; asking for the rest", self.place.source, now)
                self.pause(pauses.pop(0))
                reply = self._ask()


def _rest_of(partial: Path) -> tuple[dict[str, str], int]:
    """Headers that ask for what the part lacks, and the byte at which that begins."""
    archive, validator = partial / _ARCHIVE, partial / _VALIDATOR
    begin = archive.stat().st_size if archive.is_file() and validator.is_file() else 0
    headers = {"Range": f"bytes={begin}-", "If-Range": validator.read_text()} if begin else {}
    return {**headers, "User-Agent": "bei", "Accept": "*/*"}, begin


def _read(reply: _Reply, partial: Path, progress: Progress) -> tuple[bool, int]:
    """Whether all came, and how many bytes of the archive are there now."""
    archive = partial / _ARCHIVE
    (partial / _VALIDATOR).unlink(missing_ok=True)
    with archive.open("r+b" if reply.begin else "wb") as file:
        file.seek(reply.begin)
        if reply.validator:  # without one nobody can say what a rest belongs to
            (partial / _VALIDATOR).write_text(reply.validator)
        whole = _copy(reply.body, file, progress)
        now = file.tell()
    return whole and reply.size in {None, now}, now


def _copy(body: http.client.HTTPResponse, file: IO[bytes], progress: Progress) -> bool:
    """Whether the body came to its end; what came before an error is written."""
    while True:
        try:
            block, more = body.read(1 << 20), True
        except http.client.IncompleteRead as fault:
            block, more = fault.partial, False
        except (OSError, http.client.HTTPException) as fault:
            log.debug("the connection broke: %s", type(fault).__name__)
            return False
        file.write(block)
        progress.add(len(block))
        if not block or not more:
            return more


def _reply(body: http.client.HTTPResponse, asked: int, source: str) -> _Reply:
    """What the headers say. Raises CheckpointError for a web page, and for a part that was not asked for."""
    headers = body.headers
    if headers.get_content_type() == "text/html":
        body.close()
        raise CheckpointError(
            f"{source} answers with a web page (HTML), not a tar: a login, an error, or not the file's own URL; "
            "a Hugging Face repository is given as owner/name"
        )
    etag = headers["ETag"] if (headers["ETag"] or "W/").startswith('"') else None
    length = int(headers["Content-Length"]) if (headers["Content-Length"] or "").isdigit() else None
    if body.status != http.client.PARTIAL_CONTENT:
        return _Reply(body, 0, length, etag, headers["Last-Modified"])
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers["Content-Range"] or "")
    if found is None or int(found[1]) != asked:
        body.close()
        raise CheckpointError(f"{source}: the server sent {headers['Content-Range']} where byte {asked} was asked for")
    return _Reply(body, asked, int(found[2]) if found[2].isdigit() else None, etag, headers["Last-Modified"])


def _without_user(url: str) -> tuple[str, str | None]:
    """A URL without user and password, and the header that stands for them; http.client knows only that."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    return parts._replace(netloc=host).geturl(), f"Basic {base64.b64encode(unquote(user).encode()).decode()}"


def _authorization(secret: str, source: str) -> str:
    """The header of a bearer token. Raises CheckpointError, without it, for one that no header can carry."""
    if not (secret.isascii() and secret.isprintable()):
        raise CheckpointError(f"{source}: the secret is to be a bearer token, in one line")
    return secret if secret.partition(" ")[0] in {"Bearer", "Basic"} else f"Bearer {secret}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
