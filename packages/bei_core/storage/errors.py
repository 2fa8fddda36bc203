"""Translates errors of disks and object stores to errors that name the path or URL, the reason and what to do."""

from __future__ import annotations

import errno
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from bei_core.errors import BeiError, CheckpointError, DiskError
from bei_core.storage.backends import find_backend, redact

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

RecordT = TypeVar("RecordT")

_PAUSES_S = (0.5, 2.0, 5.0)  # before the second, third and fourth try
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class TransientError(CheckpointError):
    """An object store or server did not answer, or stopped before the end. Another try may succeed."""

    exit_status = 75  # EX_TEMPFAIL


class DriverMissingError(CheckpointError):
    """The package that reads an object store is not installed. The text has the pip command."""

    exit_status = 69  # EX_UNAVAILABLE


def decode_record(content: bytes, schema: type[RecordT]) -> RecordT:
    """Returns the JSON of a file that BEI writes. Raises msgspec.DecodeError for any fault of a damaged one."""
    try:
        return msgspec.json.decode(content, type=schema)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def is_transient_status(status: int) -> bool:
    """Whether a request that was answered with this HTTP status may succeed later."""
    return status in {408, 425, 429} or status >= 500


class Advice(NamedTuple):
    """What to do if a folder is full or may not be written, for error texts."""

    free_space: str  # how to free space there
    setting: str  # the setting that names another folder


CACHE = Advice("bei engines prune --max-gb N removes what was used least recently", "cache_dir (BEI_CACHE_DIR)")
OUTPUT = Advice("bei engines prune --max-gb N helps if the cache is on that disk", "--output")


@contextmanager
def translate_os_errors(folder: Path, advice: Advice = CACHE) -> Iterator[None]:
    """Raise DiskError for an OSError inside the block, which reads or writes in `folder`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, folder, advice) from error


@contextmanager
def translate_store_errors(url: str, secret: str | None = None, show: Callable[[str], str] = redact) -> Iterator[None]:
    """Raise CheckpointError for what a driver raises inside the block; its text has no value of the secret.

    TransientError unless the store says that the object does not exist or that access is denied. `show` returns the URL
    without secrets.
    """
    try:
        yield
    except BeiError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{show(url)}: does not exist: {_message_of(error, secret)}") from error
    except Exception as error:
        said = _message_of(error, secret)
        if not _is_about_credentials(error):
            raise TransientError(f"{show(url)}: {said}.") from error
        denied = "access denied: " if isinstance(error, PermissionError) else ""
        raise CheckpointError(f"{show(url)}: {denied}{said}. {_credentials_help(url, secret)}") from error


def retry_transient(call: Callable[[], ResultT], what: str) -> ResultT:
    """Returns what `call` returns. After a TransientError it is called again, after growing pauses; four times at most.

    `what` names the object for the log. It gets only the class of the error, whose text may have a signed URL.
    """
    for pause_s in _PAUSES_S:
        try:
            return call()
        except TransientError as error:
            reason = type(error.__cause__ or error).__name__
            log.warning("%s: no answer (%s); trying again in %g s", redact(what), reason, pause_s)
            time.sleep(pause_s)
    return call()


def disk_error(error: OSError, folder: Path, advice: Advice = CACHE) -> DiskError:
    """The DiskError for an OSError that was raised while `folder` was read or written."""
    # If the disk is full, the error's own names do not help: the file that was written is removed, and the error of a
    # copy names the file that was read.
    where = folder if is_full(error) else error.filename2 or error.filename or folder
    return DiskError(f"cannot read or write {where}: {error.strerror or error}; {_help(error, advice)}")


def is_full(error: BaseException) -> bool:
    """Whether the disk is full, or a quota or the limit on the size of files is reached."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_disk_error(error: OSError) -> bool:
    """Whether an OSError certainly comes from a disk. A connection that is denied names no file."""
    return error.errno in _FULL | {errno.EIO} or (error.errno in _DENIED and error.filename is not None)


def _help(error: OSError, advice: Advice) -> str:
    if is_full(error):
        return f"free some space there ({advice.free_space}), or set {advice.setting} to a folder on a larger disk"
    if error.errno in _DENIED:
        return f"let this user read and write there, or set {advice.setting} to a folder that can be written"
    if error.errno == errno.EIO:
        return f"check the disk or its volume, which fails or is not mounted, or set {advice.setting} to another folder"
    return f"check this path, or set {advice.setting} to another folder"


def decode_secret(secret: str) -> dict[str, Any] | None:
    """The JSON object that a secret of an object store is; None if it is not one."""
    try:
        values = json.loads(secret)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _message_of(error: BaseException, secret: str | None) -> str:
    """The first line of an error's message, without any value of the secret."""
    text = str(error).strip().partition("\n")[0] or "no reason given"
    values = [secret, *map(str, (decode_secret(secret) or {}).values())] if secret else []
    for value in sorted((value for value in values if len(value) > 3), key=len, reverse=True):
        text = text.replace(value, "***")
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def _is_about_credentials(error: BaseException) -> bool:
    """Whether a driver's error is about credentials, by the name of its class, which cannot be imported here."""
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return isinstance(error, PermissionError) or re.search("Credential|Authenticat|RefreshError", names) is not None


def _credentials_help(url: str, secret: str | None) -> str:
    """What to do if a store denies access, for an error text."""
    backend = find_backend(url)
    if backend is None or not backend.package:
        return "Check that this user may read and write there"
    given = "the secret that was given" if secret else "no secret was given, so the SDK's own credentials were tried"
    form = f"{backend.name} takes {backend.credentials_form}"
    return f"Credentials: {given}; {form} (checkpoint_secret, runtime_secret_name)"
