"""Hugging Face repositories, at an exact commit, in huggingface_hub's own cache.

Other programs share that cache. It resumes downloads, shows progress on a terminal and stores each file once, so BEI
reads the files there and does not copy them.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bei_core.checkpoint.folder import (
    SMALL_FILES,
    Checkpoint,
    accept,
    choose_format,
    has_weights,
    is_weights,
    no_weights,
    pickled_files,
    safetensors_files,
    weight_files,
)
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.storage.errors import Advice, TransientError, disk_error, is_disk_error, is_transient_status
from bei_core.storage.progress import rate

log = logging.getLogger(__name__)

# Errors of a connection, of httpx and of huggingface_hub.
_TRANSIENT = frozenset({"NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError", "XetDownloadError"})

_CACHE = Advice("hf cache prune removes revisions that no branch names", "HF_HUB_CACHE")


def fetch_repository(
    repo: str, revision: str | None, options: Mapping[str, Any], check: Callable[[Path], None] = accept
) -> Checkpoint:
    """Fetch the files of a repository that a model needs. `options` are passed to huggingface_hub's snapshot_download.

    `check` is called with the folder before weights are fetched. Raises CheckpointError (TransientError if the hub does
    not answer) and DiskError that say what to do, and what `check` raises.
    """
    folder = _download(repo, revision or "main", SMALL_FILES, options)
    check(folder)
    commit = folder.name
    before, started = _weights_size(folder), time.monotonic()
    if not before:
        log.info("fetching %s at %s from the hub", repo, commit)
    # These calls name the commit, because the branch may move between two calls.
    _download(repo, commit, safetensors_files(folder), options)
    if pickled := pickled_files(folder):
        _download(repo, commit, pickled, options)
    added = _weights_size(folder) - before
    if added:
        log.info("fetched %s: %s", repo, rate(added, time.monotonic() - started))
    checkpoint = Checkpoint(folder=folder, source=repo, revision=commit)
    if not has_weights(folder / checkpoint.first_module):
        raise no_weights(repo, _names(repo, commit, options))
    return checkpoint


class Outline(NamedTuple):
    """What a repository says of its model before weights are fetched."""

    checkpoint: Checkpoint  # with the small files only
    weight_bytes: int


def fetch_outline(repo: str, revision: str | None, options: Mapping[str, Any]) -> Outline:
    """The small files of a repository, and the size of its weights. `options` are as in `fetch_repository`.

    Raises CheckpointError that says what to do, UnsupportedModelError if it has no weights.
    """
    from huggingface_hub import HfApi

    folder = _download(repo, revision or "main", SMALL_FILES, options)
    try:
        hub = HfApi(endpoint=options["endpoint"], token=options["token"])
        tree = hub.list_repo_tree(repo, recursive=True, revision=folder.name)
        sizes = {entry.path: entry.size for entry in tree if hasattr(entry, "size")}
    except Exception as error:  # also of its HTTP client, which differs between versions
        raise _error_of(repo, error, folder.name) from error
    num_bytes = sum(sizes[name] for name in choose_format(sizes).intersection(weight_files(folder)))
    if not num_bytes:
        raise UnsupportedModelError(str(no_weights(repo, sizes)))
    return Outline(Checkpoint(folder=folder, source=repo, revision=folder.name), num_bytes)


def _weights_size(folder: Path) -> int:
    """Size in bytes of the weights in the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if is_weights(path.name) and path.is_file())


def _names(repo: str, commit: str, options: Mapping[str, Any]) -> list[str]:
    """The names of the repository's files, for an error text; empty if the hub does not list them."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi(endpoint=options["endpoint"], token=options["token"])
        return [] if options["local_files_only"] else list(hub.list_repo_files(repo, revision=commit))
    except Exception as error:  # the caller raises a more useful error
        log.debug("cannot list %s: %s", repo, error)
        return []


def _download(repo: str, revision: str, patterns: Iterable[str], options: Mapping[str, Any]) -> Path:
    """The commit's folder in the cache, with the files that match. Raises CheckpointError, DiskError."""
    # Imported here because it takes a third of a second, and a local folder does not need it.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), **options))
    except Exception as error:  # also of its HTTP client, which differs between versions
        if (refused := _disk_error_in(error)) is not None:
            from huggingface_hub.constants import HF_HUB_CACHE

            raise disk_error(refused, Path(options["cache_dir"] or HF_HUB_CACHE), _CACHE) from error
        raise _error_of(repo, error, revision) from error


def _disk_error_in(error: BaseException) -> OSError | None:
    """The error of the disk that caused `error`, or None. hf_xet (in Rust) gives only its number, in its message."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    known = error
    if said is not None and not isinstance(error, OSError):
        known = OSError(int(said[1]), os.strerror(int(said[1])), "")  # hf_xet does not name the file
    if isinstance(known, OSError) and is_disk_error(known):
        return known
    cause = error.__cause__ or error.__context__
    return None if cause is None else _disk_error_in(cause)


def _error_of(repo: str, error: Exception, revision: str) -> CheckpointError:
    """The error to raise for one of huggingface_hub; a TransientError if another try may succeed."""
    kind = TransientError if _is_transient(error) else CheckpointError
    return kind(f"{repo}: {_advice(error, revision)}")


def _is_transient(error: BaseException) -> bool:
    """Whether the hub did not answer or had a fault of its own, by the error or by what caused it.

    The classes of the HTTP client are known by their names, because the client differs between versions.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return is_transient_status(status)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, (ConnectionError, TimeoutError)) or not names.isdisjoint(_TRANSIENT):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _is_transient(cause)


def _advice(error: Exception, revision: str) -> str:
    """What an operator can do about an error of huggingface_hub, for an error text."""
    from huggingface_hub import errors

    said = str(error).strip().partition("\n")[0]
    if isinstance(error, errors.HFValidationError):
        return "neither a folder nor a Hugging Face repository (owner/name)"
    if isinstance(error, errors.GatedRepoError):
        return "it is gated; accept its terms on the hub, and give a token that may read it (HF_TOKEN, hf_token)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository on the hub, or a private one, which needs a token (HF_TOKEN, hf_token)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision}"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        reason = "the hub cannot be reached or is switched off (HF_HUB_OFFLINE)"
        return (
            f"revision {revision} is not completely cached, and {reason}; fetch it once, or use a local folder. {said}"
        )
    return f"could not be fetched: {type(error).__name__}: {said}"


class CachedRevision(NamedTuple):
    """One revision of a repository in huggingface_hub's cache."""

    repo: str
    commit: str
    folder: Path
    num_bytes: int
    used_at: float  # seconds since the epoch


def cached_revisions(cache_dir: Path | None) -> list[CachedRevision]:
    """The models in huggingface_hub's cache, the least recently used first."""
    return [
        CachedRevision(repo.repo_id, one.commit_hash, one.snapshot_path, one.size_on_disk, repo.last_accessed)
        for repo in sorted(_scan(cache_dir), key=lambda repo: repo.last_accessed)
        for one in repo.revisions
    ]


def remove_repository(repo: str, cache_dir: Path | None) -> int:
    """Remove every revision of a model from huggingface_hub's cache; returns the bytes that it frees."""
    commits = [revision.commit for revision in cached_revisions(cache_dir) if revision.repo == repo]
    if not commits:
        return 0
    from huggingface_hub import scan_cache_dir

    strategy = scan_cache_dir(cache_dir).delete_revisions(*commits)
    strategy.execute()
    return int(strategy.expected_freed_size)


def _scan(cache_dir: Path | None) -> list[Any]:
    """The repositories of models in the cache; none if there is no cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return [repo for repo in scan_cache_dir(cache_dir).repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []
