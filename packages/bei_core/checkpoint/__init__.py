"""Checkpoints: a model's files in a local folder, a Hugging Face repository, an object store or a tar at a URL."""

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
    """The files of a model at the exact revision that `revision` names now. They are fetched if they are not here.

    model_id                      `revision`, and what the checkpoint is pinned to
    a folder                      ignored, as a TEI command line may have one; `local_digest`
    owner/name                    branch, tag or commit of a Hugging Face repository; the commit
    s3://, gs://, azure://        SHA-256 of a folder's listing (see `buckets`); the same
    http(s)://…                   SHA-256 of a tar (see `urls`); the same

    `token` is for the hub, `secret` for object stores (JSON) and URLs (a bearer token). `offline`, `endpoint` and
    `cache_dir` are huggingface_hub's; None: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HUB_CACHE. `root` is where the other
    checkpoints are kept, by default in BEI's own cache. `check` is called with the folder of a hub or bucket when its
    small files are there, before the weights are fetched. Raises what it raises, and CheckpointError and DiskError that
    say what to do.
    """
    folder = Path(model_id.removeprefix("file://")).expanduser()
    if folder.is_dir():
        return _local(folder)
    root = root or default_cache_dir(os.environ) / "checkpoints"
    if is_store(model_id) and not model_id.startswith("file://"):
        from bei_core.checkpoint.buckets import fetch_bucket

        return fetch_bucket(model_id, revision, secret, root, check)
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
    """Take a lease on what is fetched of a model into `root`; yields the function that releases it before the end.

    Local folders and huggingface_hub's cache need none: nothing there is evicted. A cache that cannot be written gives
    none either.
    """
    is_fetched = "://" in model_id and not model_id.startswith("file://")
    source = redact(model_id.rstrip("/") if is_store(model_id) else model_id)
    with ExitStack() as leases:
        if is_fetched:
            with suppress(DiskError):
                leases.callback(SourceCache(root, source).lease("").release)
        yield leases.close


def _local(folder: Path) -> Checkpoint:
    """A local folder, pinned to the digest of its files."""
    try:
        return Checkpoint(folder=folder, source=str(folder.absolute()), revision=local_digest(folder))
    except OSError as error:  # the digest opens every file that is needed later
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error


def _unknown_source(model_id: str) -> CheckpointError:
    """The error for a URL that is no source of checkpoints."""
    scheme = model_id.partition("://")[0]
    if scheme == "file":
        return CheckpointError(f"{model_id} is not a folder")
    if scheme == "baseten-training":
        return CheckpointError(
            f"{model_id}: checkpoints of Baseten Training (BASETEN_TRAINING) are in Baseten's own storage, "
            "which only its builders read; fetch one (truss train get_checkpoint_urls) and give its folder"
        )
    return CheckpointError(
        f"{redact(model_id)}: {scheme} is no source of checkpoints; give a folder, a Hugging Face "
        f"repository, {store_schemes()}, or https:// for a tar"
    )
