"""Safe extraction of a model from an untrusted archive (a tar)."""

from __future__ import annotations

import errno
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from bei_core.checkpoint.folder import SMALL_FILES, choose_format, is_small, is_weights, no_weights, weight_files
from bei_core.errors import CheckpointError

_MAX_MEMBERS = 100_000
_MAX_RATIO = 100  # bytes unpacked per byte of the archive; weights compress little, a tar bomb by a thousand
_FREE_BYTES = 256 << 20  # that any archive may unpack to, besides
_ROOT_FILES = ("config.json", "modules.json")
_SMALL = frozenset(PurePosixPath(pattern).name for pattern in SMALL_FILES)
_HTML = (b"<!doctype html", b"<html", b"<?xml")

# Headers that describe the next member. tarfile reads each of them into memory before this module can check it.
_EXTENSIONS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_MAX_EXTENSIONS = 1 << 20  # bytes of such headers for one member, and of those for the whole archive

# Errors of the system because of a member's name.
_OF_NAMES = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})
_SHOWN = 300  # characters of a name in an error


class _RefusedError(Exception):
    """A member that is refused before tarfile reads its content; the text says why."""


class _Archive(tarfile.TarFile):
    """A tar whose extended headers are limited, so that a small archive cannot fill the memory with them."""

    num_before_member = num_global = 0  # bytes of extended headers

    def count(self, member: tarfile.TarInfo) -> None:
        """Count the bytes of a member's extended header. Raises _RefusedError for too many, or a negative number."""
        if member.size < 0:  # tarfile would read the whole archive
            raise _RefusedError(f"{member.name!r} has a negative size")
        if member.type not in _EXTENSIONS:
            self.num_before_member = 0
        elif member.type == tarfile.XGLTYPE:
            self.num_global += member.size
        else:
            self.num_before_member += member.size
        if max(self.num_before_member, self.num_global) > _MAX_EXTENSIONS:
            raise _RefusedError(f"{member.name!r} has an extended header of more than {_MAX_EXTENSIONS} bytes")


class _Member(tarfile.TarInfo):
    """A member whose header is checked before its content is read."""

    def _proc_member(self, archive: _Archive) -> tarfile.TarInfo:
        """Check the member, then read it. tarfile calls this for each header; subclasses may override it."""
        archive.count(self)
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _RefusedError(f"{self.name!r} is a sparse file")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return] # typeshed does not have it

    def _proc_gnusparse_10(self, following: tarfile.TarInfo, *_: object) -> None:
        raise _RefusedError(f"{following.name!r} is a sparse file")


def unpack(archive: Path, folder: Path, source: str) -> Path:
    """Extract the files that a model needs into the empty `folder`; returns the model's folder, at or below it.

    Raises CheckpointError, naming `source`, if the archive is not a tar or holds no model or several, if a member would
    be outside the folder or is neither file nor folder, or if it unpacks to far more than its own size.
    """
    limit = _FREE_BYTES + _MAX_RATIO * archive.stat().st_size
    _check_kind(archive, source)
    names = []
    try:
        with _Archive.open(archive, "r:*", tarinfo=_Member) as tar:
            for name, member in _members(tar, source, limit):
                names.append(name)
                if _may_be_wanted(name):
                    _write(tar.extractfile(member), member.size, folder / name, f"{source}: {name}")
            _check_end(tar, limit)
    except _RefusedError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, ValueError, RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's error; gzip's and bz2's have no errno
            raise
        reason = " ".join(str(error).split())  # tarfile's text may have several lines
        raise CheckpointError(f"{source} is not a tar, or is truncated or damaged: {reason}") from error
    root = _root(names, source)
    inner = {str(PurePosixPath(name).relative_to(root)) for name in names if PurePosixPath(name).is_relative_to(root)}
    _keep_wanted(folder / root, source, inner)
    return folder / root


def _check_kind(archive: Path, source: str) -> None:
    """Raise CheckpointError for a web page, which servers send to a client that is not logged in."""
    with archive.open("rb") as file:
        begin = file.read(512).lstrip().lower()
    if begin.startswith(_HTML):
        raise CheckpointError(f"{source} is a web page (HTML), not a tar: a login page, an error, or another page")


def _members(tar: tarfile.TarFile, source: str, limit: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files, each with its checked name. Raises CheckpointError for a member that is refused."""
    seen: set[str] = set()
    for count, member in enumerate(tar):
        name = _checked(member, source)
        if member.size < 0:
            raise CheckpointError(f"{source}: {name!r} has a negative size")
        if count >= _MAX_MEMBERS or member.offset_data + member.size > limit:
            raise CheckpointError(f"{source} unpacks to more than {limit} bytes or {_MAX_MEMBERS} files: a tar bomb")
        if not member.isfile():
            continue
        if name in seen:
            raise CheckpointError(f"{source} has {name} twice")
        seen.add(name)
        yield name, member


def _check_end(tar: tarfile.TarFile, limit: int) -> None:
    """Raise ReadError unless the last member is followed by a block of zeros, as in every whole tar.

    tarfile itself accepts an archive that ends between two members or inside a header. The rest is read too, up to byte
    `limit`, because a compressed archive has its checksum at the end.
    """
    content = tar.fileobj
    if content is None:
        return
    content.seek(tar.offset)
    if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("the end is missing")
    while content.tell() < limit and content.read(1 << 20):
        pass


def _checked(member: tarfile.TarInfo, source: str) -> str:
    """The member's path in the folder. Raises CheckpointError if it is outside, or if it is no file and no folder."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise CheckpointError(f"{source} has {member.name!r}, which is outside the archive's folder")
    if not (member.isfile() or member.isdir()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
        raise CheckpointError(f"{source} has {member.name!r}, which is {kind}; pack the files themselves (tar -h)")
    return str(path)


def _may_be_wanted(name: str) -> bool:
    """Whether a file may belong to a model, by its name without folders: the model may be in any folder."""
    last = PurePosixPath(name).name
    return not last.startswith("._") and (is_weights(last) or any(map(PurePosixPath(last).match, _SMALL)))


def _write(content: IO[bytes] | None, size: int, path: Path, what: str) -> None:
    """Write a member. Raises CheckpointError if it has fewer bytes than `size`, or if no file can have its name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.open("xb")
    except OSError as error:
        if error.errno not in _OF_NAMES:
            raise
        raise CheckpointError(
            f"{what[:_SHOWN]} cannot be written ({error.strerror}): its name is too long, or a file and a folder have "
            "the same name"
        ) from error
    with target as file:
        if content is not None:
            shutil.copyfileobj(content, file, 1 << 20)
        if file.tell() != size:
            raise CheckpointError(f"{what} is truncated: {file.tell()} bytes of {size}")


def _root(names: list[str], source: str) -> PurePosixPath:
    """The model's folder: the topmost one with a config.json or modules.json. Raises CheckpointError if not unique."""
    folders = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name in _ROOT_FILES}
    if not folders:
        raise CheckpointError(f"{source} has no config.json; there is {', '.join(sorted(names)[:5]) or 'nothing'}")
    depth = min(len(folder.parts) for folder in folders)
    highest = sorted(folder for folder in folders if len(folder.parts) == depth)
    if len(highest) > 1:
        raise CheckpointError(f"{source} holds several models: {', '.join(map(str, highest))}; pack one")
    return highest[0]


def _keep_wanted(root: Path, source: str, names: set[str]) -> None:
    """Remove files that the model does not need. Raises CheckpointError, naming pickles, if there are no weights."""
    if not any(map(is_weights, names)):
        raise no_weights(source, names)
    weights, chosen = set(weight_files(root)), choose_format(names)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        name = path.relative_to(root).as_posix()
        if name not in chosen or (not is_small(name) and name not in weights):
            path.unlink()
