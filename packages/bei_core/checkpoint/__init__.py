"""Checkpoints: the files of a model, from a local folder, the Hugging Face hub, an object store or a tar at a URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bei_core.checkpoint.cache import SourceCache
from bei_core.checkpoint.folder import Checkpoint, accept, local_digest
from bei_core.checkpoint.tensors import Tensors
from bei_core.config.cache_dir import default_cache_dir
from bei_core.errors import CheckpointError, DiskError
from bei_core.storage.backends import is_store, redact, store_schemes

__all__ = ["Checkpoint", "Tensors", "lease_checkpoint", "local_digest", "resolve"]


def resolve(
    model_id: str,
    revision: str | None = None,
    *,
    token: str | None = None,
    secret: str | None = None,
    offline: bool | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    root: Path | None = None,
    check: Callable[[Path], None] = accept,
) -> Checkpoint:
    """The files of a model in a local folder, fetched if necessary, at an exact revision.

    model_id                        `revision` may be               the checkpoint's revision is
    a folder                        anything, it is ignored         `local_digest` of the folder
    owner/name on the hub           a branch, a tag or a commit     the commit
    a folder of an object store     a checkpoint's revision         SHA-256 of the folder's listing (`stores`)
    http(s):// of a tar             a checkpoint's revision         SHA-256 of the tar (`urls`)

    `token` is for the hub, `secret` for object stores (JSON) and URLs (a bearer token). `offline`, `endpoint` and
    `cache_dir` are options of huggingface_hub; None means HF_HUB_OFFLINE, HF_ENDPOINT and HF_HUB_CACHE. Checkpoints
    that are not from the hub are fetched into `root`, by default in BEI's own cache. Of the hub and of object stores,
    small files are fetched first; `check` is then called with the folder, before weights are fetched.
    Raises CheckpointError and DiskError that say what to do, and what `check` raises.
    """
    folder = Path(model_id.removeprefix("file://")).expanduser()
    if folder.is_dir():
        return _local(folder)
    root = root or default_cache_dir(os.environ) / "checkpoints"
    if is_store(model_id) and not model_id.startswith("file://"):
        from bei_core.checkpoint.stores import fetch_from_store

        return fetch_from_store(model_id, revision, secret, root, check)
    if model_id.startswith(("https://", "http://")):
        from bei_core.checkpoint.urls import fetch_archive

        return fetch_archive(model_id, revision, secret, root)
    if "://" in model_id:
        raise _unknown_source(model_id)
    if folder.exists() or model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1:
        raise CheckpointError(f"{model_id} is not a folder; give a model's folder or a Hugging Face repository")
    from bei_core.checkpoint.hub import fetch_repository

    options = {"token": token, "local_files_only": bool(offline), "endpoint": endpoint, "cache_dir": cache_dir}
    return fetch_repository(model_id, revision, options, check)


@contextmanager
def lease_checkpoint(model_id: str, root: Path) -> Iterator[Callable[[], None]]:
    """Lease a model's checkpoint in `root` for the block; yields a function that releases the lease earlier.

    There is no lease for local folders and for the hub, where nothing is evicted, and if the cache cannot be written.
    """
    is_fetched = "://" in model_id and not model_id.startswith("file://")
    with ExitStack() as leases:
        if is_fetched:
            with suppress(DiskError):
                leases.callback(SourceCache(root, source_of(model_id)).lease("").release)
        yield leases.close


def source_of(model_id: str) -> str:
    """The name by which caches know a model: a folder's path, a URL without secrets, or a repository of the hub."""
    folder = Path(model_id.removeprefix("file://")).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    return redact(model_id.rstrip("/") if is_store(model_id) else model_id)


def _local(folder: Path) -> Checkpoint:
    """A local folder, with the digest of its files as its revision."""
    try:
        return Checkpoint(folder=folder, source=source_of(str(folder)), revision=local_digest(folder))
    except OSError as error:  # found here for every file, because the digest opens them all
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error


def _unknown_source(model_id: str) -> CheckpointError:
    """The error for a URL from which no checkpoint can be fetched."""
    scheme = model_id.partition("://")[0]
    if scheme == "file":
        return CheckpointError(f"{model_id} is not a folder")
    if scheme == "baseten-training":
        return CheckpointError(
            f"{model_id}: checkpoints of Baseten Training (BASETEN_TRAINING) are in Baseten's own storage, "
            "which only its builders read; fetch one (truss train get_checkpoint_urls) and give its folder"
        )
    return CheckpointError(
        f"{redact(model_id)}: checkpoints cannot be fetched by {scheme}; give a folder, a Hugging Face "
        f"repository, {store_schemes()}, or https:// for a tar"
    )
