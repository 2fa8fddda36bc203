"""Checkpoints in object stores: a folder of S3, Google Cloud Storage or Azure Blob Storage.

A bucket has no commits. The revision of a folder is the SHA-256 of its listing: name, size and tag (ETag, generation…)
of every file that a model may need. So a change is found without downloading anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bei_core.checkpoint.cache import SourceCache
from bei_core.checkpoint.files import inside
from bei_core.checkpoint.folder import (
    Checkpoint,
    accept,
    choose_format,
    is_small,
    is_weights,
    no_weights,
    weight_files,
)
from bei_core.errors import CheckpointError, DiskError
from bei_core.storage.backends import redact
from bei_core.storage.errors import TransientError, translate_os_errors
from bei_core.storage.objects import ObjectStore
from bei_core.storage.progress import Progress
from bei_core.storage.transfer import RemoteFile, fetch, in_blocks

_TAGS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "mtime", "created")


def fetch_from_store(
    url: str, revision: str | None, secret: str | None, root: Path, check: Callable[[Path], None] = accept
) -> Checkpoint:
    """The model in a folder of an object store, fetched into the cache unless it is there.

    The store is not contacted if `revision` is in the cache; otherwise `revision` must be that of the folder's listing
    now. If the store does not answer, the revision that was fetched last is served, with a warning. `check` is called
    with the folder before weights are fetched. Raises CheckpointError, DiskError, and what `check` raises.
    """
    url = url.rstrip("/")
    cache = SourceCache(root, redact(url))
    if revision and (folder := cache.find_pinned(revision, "folder's listing")):
        return Checkpoint(folder, cache.source, revision)
    store = ObjectStore(url, secret)
    try:
        files = _list(store)
    except TransientError as error:
        return cache.find_last(revision, error)
    now = _revision_of(files.values())
    if revision and revision != now:
        raise CheckpointError(
            f"{cache.source} is at revision {now}; {revision} is not in the cache, and no longer in the store"
        )
    return cache.checkpoint(now, cache.find(now) or _fetch(store, files, now, cache, check))


def _list(store: ObjectStore) -> dict[str, RemoteFile]:
    """The files that a model may need, by name. Raises CheckpointError if the folder is not a model."""
    source, found = redact(store.url), store.list()
    if set(found) == {""}:
        raise CheckpointError(f"{source} is a file; give the model's folder")
    wanted = choose_format(inside(name, f"a file of {source}") for name in found if _is_wanted(name))
    if not wanted & {"config.json", "modules.json"}:
        raise CheckpointError(f"{source} has no config.json; there is {', '.join(sorted(found)[:5]) or 'nothing'}")
    if not any(map(is_weights, wanted)):
        raise no_weights(source, found)
    return {name: _remote_file(store, name, found[name]) for name in sorted(wanted)}


def _remote_file(store: ObjectStore, name: str, info: Mapping[str, Any]) -> RemoteFile:
    label, size = f"{redact(store.url)}/{name}", int(info["size"])

    def read(begin: int, end: int) -> bytes:
        block = store.read(name, begin, end)
        if block is None:
            raise CheckpointError(f"{label} was removed while it was fetched")
        return block

    tag = next((f"{key}={info[key]}" for key in _TAGS if info.get(key)), "")
    return RemoteFile(
        name,
        label,
        size,
        in_blocks(read, size, label),
        md5=store.md5_of(info),
        is_md5=partial(store.is_md5, name),
        tag=tag,
    )


def _revision_of(files: Iterable[RemoteFile]) -> str:
    """SHA-256 of the listing, in hex."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{file.size}\0{file.tag}\n".encode())
    return total.hexdigest()


def _fetch(
    store: ObjectStore,
    files: Mapping[str, RemoteFile],
    revision: str,
    cache: SourceCache,
    check: Callable[[Path], None],
) -> Path:
    """Fetch and publish the folder, unless another process has done so meanwhile; returns the published folder."""
    with cache.fetching():
        if folder := cache.find(revision):
            return folder
        partial_folder = cache.partial(revision)
        try:
            with translate_os_errors(cache.root):
                _download(files, partial_folder, cache.source, check)
        except (CheckpointError, DiskError):
            if folder := cache.find(revision):  # published by a process that the lock did not hold back
                return folder
            raise
        if _revision_of(_list(store).values()) != revision:
            raise CheckpointError(f"{cache.source} changed while it was fetched; try again when its upload is complete")
        return cache.publish_checkpoint(partial_folder, revision)


def _download(files: Mapping[str, RemoteFile], folder: Path, source: str, check: Callable[[Path], None]) -> None:
    """Fetch the files that the model needs: small files first, because they name the files with weights."""
    folder.mkdir(parents=True, exist_ok=True)
    fetch((file for name, file in files.items() if is_small(name)), folder)
    check(folder)
    weights = [files[name] for name in weight_files(folder) if name in files]
    with Progress(source, sum(file.size or 0 for file in weights)) as progress:
        fetch(weights, folder, progress)


def _is_wanted(name: str) -> bool:
    """Whether a model may need the file: a small file, or weights of the folder or of a module's folder."""
    return is_small(name) or (is_weights(name) and name.count("/") <= 1)
