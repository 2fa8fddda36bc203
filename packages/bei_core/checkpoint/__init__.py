"""A model's files: in a local folder, a Hugging Face repository, an object store, a tar at a URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bei_core.checkpoint.folder import Checkpoint, accept, local_digest
from bei_core.checkpoint.place import Place
from bei_core.checkpoint.tensors import Tensors
from bei_core.config.cache_dir import default_cache_dir
from bei_core.errors import CheckpointError
from bei_core.storage.objects import is_store, shown

__all__ = ["Checkpoint", "Tensors", "local_digest", "resolve", "staying"]

_KNOWN = "a folder, a Hugging Face repository, s3://, gs://, azure://, or https:// for a tar"


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
    """The files of a model at the exact revision that `revision` names now; fetched, where they are not here.

    model_id                      revision, and what it is pinned to
    a folder                      not looked at, as a TEI launch line may carry one; `local_digest`
    owner/name                    branch, tag or commit of a Hugging Face repository; the commit
    s3://, gs://, azure://        SHA-256 of a folder's listing (see `buckets`); the same
    http(s)://…                   SHA-256 of a tar (see `archives`); the same

    `token` is for the hub, `secret` for object stores (JSON) and URLs (a bearer token). `offline`, `endpoint` and
    `cache_dir` are huggingface_hub's; where None: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HUB_CACHE. `root` is where all
    else is kept, by default in BEI's own cache. `check` is called with a folder of the hub or of a store when its small
    files are there, and may raise before weights are fetched. Raises CheckpointError and DiskError that say what to do.
    """
    place = Path(model_id.removeprefix("file://")).expanduser()
    if place.is_dir():
        return _local(place)
    root = root or default_cache_dir(os.environ) / "checkpoints"
    if is_store(model_id) and not model_id.startswith("file://"):
        from bei_core.checkpoint.buckets import fetch_bucket

        return fetch_bucket(model_id, revision, secret, root, check)
    if model_id.startswith(("https://", "http://")):
        from bei_core.checkpoint.remote import fetch_archive

        return fetch_archive(model_id, revision, secret, root)
    if "://" in model_id:
        raise _no_source(model_id)
    if place.exists() or model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1:
        raise CheckpointError(f"{model_id} is not a folder; give a model's folder or a Hugging Face repository")
    from bei_core.checkpoint.hub import fetch_repository

    options = {"token": token, "local_files_only": bool(offline), "endpoint": endpoint, "cache_dir": cache_dir}
    return fetch_repository(model_id, revision, options, check)


@contextmanager
def staying(model_id: str, root: Path) -> Iterator[Callable[[], None]]:
    """Inside `with`, or until what it gives is called, nothing that was fetched of the model into `root` is removed.

    Folders and huggingface_hub's cache are others' to look after.
    """
    is_fetched = "://" in model_id and not model_id.startswith("file://")
    source = shown(model_id.rstrip("/") if is_store(model_id) else model_id)
    held = Place(root, source).hold() if is_fetched else None
    done = held.release if held is not None else lambda: None
    try:
        yield done
    finally:
        done()


def _local(folder: Path) -> Checkpoint:
    """A folder as it is."""
    try:
        return Checkpoint(folder=folder, source=str(folder.absolute()), revision=local_digest(folder))
    except OSError as fault:  # the digest opens every file that is needed later
        raise CheckpointError(f"cannot read {fault.filename}: {fault.strerror}") from fault


def _no_source(model_id: str) -> CheckpointError:
    """The error for a URL that is no source."""
    scheme = model_id.partition("://")[0]
    if scheme == "file":
        return CheckpointError(f"{model_id} is not a folder")
    if scheme == "baseten-training":
        return CheckpointError(
            f"{model_id}: checkpoints of Baseten Training (BASETEN_TRAINING) are in Baseten's own storage, "
            "which only its builders read; fetch one (truss train get_checkpoint_urls) and give its folder"
        )
    return CheckpointError(f"{shown(model_id)}: {scheme} is no source of checkpoints; give {_KNOWN}")
