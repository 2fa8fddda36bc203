"""Checkpoints in object stores: a folder of S3, Google Cloud Storage or Azure Blob Storage.

A bucket has no commits. The revision of a folder is the SHA-256 of its listing: name, size and tag (ETag, generation…)
of every file that a model may need, so that nothing is fetched to find out whether something changed.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bei_core.checkpoint.files import inside
from bei_core.checkpoint.folder import Checkpoint, accept, is_small, no_weights, weight_files
from bei_core.checkpoint.place import LAST, Place
from bei_core.errors import CheckpointError, DiskError
from bei_core.storage.disk import writing
from bei_core.storage.objects import FileSystem, explained, is_lasting, open_store, shown
from bei_core.storage.progress import Progress
from bei_core.storage.transfer import Remote, fetch

log = logging.getLogger(__name__)

_TAGS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True)
class _Bucket:
    """A folder of a store."""

    url: str
    secret: str | None
    files: FileSystem
    path: str
    check: Callable[[Path], None]  # of the folder, before weights are fetched

    def listing(self) -> dict[str, Remote]:
        """What a model may need of the folder, by name. Raises CheckpointError where that is no model."""
        with explained(self.url, self.secret):
            found = self.files.find(self.path, detail=True)
        if not isinstance(found, Mapping):  # adlfs's answer to a file's name
            found = {name: {} for name in found}
        names = {_relative(name, self.path): info for name, info in found.items()}
        if set(names) == {""}:
            raise CheckpointError(f"{self.source} is a file; give the model's folder")
        wanted = {inside(name, f"a file of {self.source}") for name in names if _is_wanted(name)}
        if not wanted & {"config.json", "modules.json"}:
            there = ", ".join(sorted(names)[:5]) or "nothing"
            raise CheckpointError(f"{self.source} has no config.json; there is {there}")
        if not any(name.endswith(".safetensors") for name in wanted):
            raise no_weights(self.source, names)
        return {name: self._remote(name, names[name]) for name in sorted(wanted)}

    @property
    def source(self) -> str:
        return shown(self.url)

    def tags(self, remotes: Iterable[Remote]) -> str:
        """The revision: the hex SHA-256 of the listing."""
        total = hashlib.sha256()
        for remote in remotes:
            total.update(f"{remote.name}\0{remote.size}\0{remote.tag}\n".encode())
        return total.hexdigest()

    def fetch(self, remotes: Mapping[str, Remote], folder: Path) -> None:
        """Fetches what the model needs into the folder. Raises CheckpointError."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with explained(self.url, self.secret):
            fetch((remote for name, remote in remotes.items() if is_small(name)), folder, lasting=is_lasting)
        self.check(folder)
        with explained(self.url, self.secret):
            weights = [remotes[name] for name in weight_files(folder) if name in remotes]
            with Progress(self.source, sum(remote.size for remote in weights)) as progress:
                fetch(weights, folder, progress, lasting=is_lasting)

    def _remote(self, name: str, info: Mapping[str, Any]) -> Remote:
        path = f"{self.path}/{name}"

        def read(begin: int, end: int) -> bytes:
            return bytes(self.files.cat_file(path, start=begin, end=end))

        def is_md5() -> bool:
            return _md5_of_s3(self.files, path) if "ETag" in info else True

        tag = next((f"{key}={info[key]}" for key in _TAGS if info.get(key)), "")
        return Remote(name, f"{self.source}/{name}", int(info["size"]), read, md5=_md5(info), is_md5=is_md5, tag=tag)


def fetch_bucket(
    url: str, revision: str | None, secret: str | None, root: Path, check: Callable[[Path], None] = accept
) -> Checkpoint:
    """The model in a folder of an object store, fetched into the cache unless it is there.

    A `revision` that is in the cache needs no store; any other must be what the folder's listing gives now. Where the
    store is out of reach, what was fetched last serves, with a warning. `check` is called with the folder before
    weights are fetched. Raises what it raises, and CheckpointError that says what to do.
    """
    url = url.rstrip("/")
    place = Place(root, shown(url))
    if revision and (folder := place.pinned(revision, "folder's listing")):
        return Checkpoint(folder, place.source, revision)
    bucket = _Bucket(url, secret, *open_store(url, secret), check)
    try:
        remotes = bucket.listing()
    except CheckpointError as fault:
        return _last(place, revision, fault)
    now = bucket.tags(remotes.values())
    if revision and revision != now:
        raise CheckpointError(
            f"{place.source} is at revision {now}; {revision} is not in the cache, and no longer there"
        )
    folder = place.find(now) or _fetched(bucket, remotes, now, place)
    place.note(LAST, now)
    return Checkpoint(folder, place.source, now)


def _last(place: Place, revision: str | None, fault: CheckpointError) -> Checkpoint:
    """What was fetched last, where the store is out of reach and no revision is asked for. Raises CheckpointError."""
    if fault.__cause__ is None or is_lasting(fault.__cause__):
        raise fault
    last = place.last()
    if revision or last is None:
        what = f"revision {revision} is not" if revision else "no revision is"
        raise CheckpointError(f"{fault} And {what} in the cache") from fault
    log.warning("%s Serving revision %s, which was fetched last.", fault, last[0])
    return Checkpoint(last[1], place.source, last[0])


def _fetched(bucket: _Bucket, remotes: Mapping[str, Remote], revision: str, place: Place) -> Path:
    """The published folder, fetched by this process or by the one that had the lock before it."""
    with place.alone():
        if folder := place.find(revision):
            return folder
        partial = place.partial(revision)
        try:
            bucket.fetch(remotes, partial)
        except (CheckpointError, DiskError):
            if folder := place.find(revision):  # published by a process that the lock did not hold up
                return folder
            raise
        if bucket.tags(bucket.listing().values()) != revision:
            raise CheckpointError(f"{place.source} changed while it was fetched; start again when it is whole")
        place.check(partial, revision)
        return place.publish(partial, revision)


def _relative(name: str, folder: str) -> str:
    """An object's name in the folder."""
    return name.removeprefix("/").removeprefix(folder.removeprefix("/")).removeprefix("/")


def _is_wanted(name: str) -> bool:
    """Whether a model may need the file: JSON beside the weights; safetensors of the folder or of its modules."""
    return is_small(name) or (name.endswith(".safetensors") and name.count("/") <= 1)


def _md5(info: Mapping[str, Any]) -> str | None:
    """The MD5 of an object's content, hex, as far as its listing has it."""
    if info.get("md5Hash"):  # Google
        return base64.b64decode(info["md5Hash"]).hex()
    settings = info.get("content_settings") or {}  # Azure
    azure = settings.get("content_md5") if isinstance(settings, Mapping) else getattr(settings, "content_md5", None)
    if azure:
        return bytes(azure).hex()
    etag = str(info.get("ETag", "")).strip('"')
    return etag if re.fullmatch(r"[0-9a-f]{32}", etag) else None  # of several parts: hex-number


def _md5_of_s3(files: FileSystem, path: str) -> bool:
    """Whether S3's ETag is the content's MD5, which it is not where a key of KMS or of ours encrypts the object."""
    bucket, _, key = path.partition("/")
    head = files.call_s3("head_object", Bucket=bucket, Key=key)
    return head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head
