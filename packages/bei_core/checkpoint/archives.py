"""A model out of a tar that nobody vouches for."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from bei_core.checkpoint.folder import SMALL_FILES, is_small, no_weights, weight_files
from bei_core.errors import CheckpointError

_MAX_MEMBERS = 100_000
_MAX_RATIO = 100  # of what an archive unpacks to; weights hardly compress, a bomb does by a thousand and more
_FREE_BYTES = 256 << 20  # that any archive may unpack to
_ROOT_FILES = ("config.json", "modules.json")
_SMALL = frozenset(PurePosixPath(pattern).name for pattern in SMALL_FILES)
_HTML = (b"<!doctype html", b"<html", b"<?xml")


def unpack(archive: Path, folder: Path, source: str) -> Path:
    """The model's folder, at or below `folder`, which is empty before; of the archive's files only those that are read.

    Raises CheckpointError, naming `source`, for what is no tar, for one that would write elsewhere (absolute names,
    `..`, links, devices) or far more than its size, and for one without a model or with several.
    """
    limit = _FREE_BYTES + _MAX_RATIO * archive.stat().st_size
    _check_kind(archive, source)
    names = []
    try:
        with tarfile.open(archive, "r:*") as tar:
            for name, member in _members(tar, source, limit):
                names.append(name)
                if _may_be_wanted(name):
                    _write(tar.extractfile(member), member.size, folder / name, f"{source}: {name}")
            _check_end(tar, limit)
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, ValueError, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None:  # of the disk; gzip's and bz2's own have no number
            raise
        raise CheckpointError(f"{source} is no tar, or truncated, or damaged: {fault}") from fault
    root = _root(names, source)
    inner = {str(PurePosixPath(name).relative_to(root)) for name in names if PurePosixPath(name).is_relative_to(root)}
    _keep_wanted(folder / root, source, inner)
    return folder / root


def _check_kind(archive: Path, source: str) -> None:
    """Raises CheckpointError for a web page in the place of a tar, as servers send it to who is not logged in."""
    with archive.open("rb") as file:
        begin = file.read(512).lstrip().lower()
    if begin.startswith(_HTML):
        raise CheckpointError(f"{source} is a web page (HTML), not a tar: a login, an error, or not the file's own URL")


def _members(tar: tarfile.TarFile, source: str, limit: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files, each by its checked name. Raises CheckpointError."""
    seen: set[str] = set()
    for count, member in enumerate(tar):
        name = _checked(member, source)
        if count >= _MAX_MEMBERS or member.offset_data + member.size > limit:
            raise CheckpointError(f"{source} unpacks to more than {limit} bytes or {_MAX_MEMBERS} files: a tar bomb")
        if not member.isfile():
            continue
        if name in seen:
            raise CheckpointError(f"{source} has {name} twice")
        seen.add(name)
        yield name, member


def _check_end(tar: tarfile.TarFile, limit: int) -> None:
    """Raises ReadError where the files do not end with a block of zeros, as those of every whole tar do.

    tarfile takes an end between two members, or inside a header, for the end of the archive; and it stops before the
    checksum that a compressed one ends with. Reads to `limit` bytes.
    """
    content = tar.fileobj
    if content is None:
        return
    content.seek(tar.offset)
    if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while content.tell() < limit and content.read(1 << 20):
        pass


def _checked(member: tarfile.TarInfo, source: str) -> str:
    """The member's name in its folder. Raises CheckpointError where it leads out, or is neither file nor folder."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise CheckpointError(f"{source} has {member.name!r}, which leads out of its folder")
    if not (member.isfile() or member.isdir()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
        raise CheckpointError(f"{source} has {member.name!r}, which is {kind}; pack the files themselves (tar -h)")
    return str(path)


def _may_be_wanted(name: str) -> bool:
    """Whether a file may belong to a model, wherever in the archive that is."""
    last = PurePosixPath(name).name
    return not last.startswith("._") and (last.endswith(".safetensors") or any(map(PurePosixPath(last).match, _SMALL)))


def _write(content: IO[bytes] | None, size: int, path: Path, what: str) -> None:
    """Writes a member. Raises CheckpointError where it ends before its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        if content is not None:
            shutil.copyfileobj(content, file, 1 << 20)
        if file.tell() != size:
            raise CheckpointError(f"{what} is truncated: {file.tell()} bytes of {size}")


def _root(names: list[str], source: str) -> PurePosixPath:
    """The folder of the model: the highest one with a config. Raises CheckpointError for none and for several."""
    folders = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name in _ROOT_FILES}
    if not folders:
        raise CheckpointError(f"{source} has no config.json; there is {', '.join(sorted(names)[:5]) or 'nothing'}")
    depth = min(len(folder.parts) for folder in folders)
    highest = sorted(folder for folder in folders if len(folder.parts) == depth)
    if len(highest) > 1:
        raise CheckpointError(f"{source} holds several models: {', '.join(map(str, highest))}; pack one")
    return highest[0]


def _keep_wanted(root: Path, source: str, names: set[str]) -> None:
    """Removes what is not read. Raises CheckpointError where there are no weights, naming pickles."""
    if not any(name.endswith(".safetensors") for name in names):
        raise no_weights(source, names)
    weights = set(weight_files(root))
    for path in [path for path in root.rglob("*") if path.is_file()]:
        name = path.relative_to(root).as_posix()
        if not is_small(name) and name not in weights:
            path.unlink()
