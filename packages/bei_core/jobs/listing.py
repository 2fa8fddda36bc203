"""Which files at a location are data: a file, a folder or a glob, without what is hidden or of no known format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from bei_core.errors import ConfigError
from bei_core.jobs.formats import format_of, known_formats
from bei_core.storage.backends import FileSystem, redact_input

log = logging.getLogger(__name__)


def list_data(files: FileSystem, root: str, location: str) -> dict[str, Mapping[str, Any]]:
    """Returns the files of known formats at `root` (a file, a folder or a glob) in order: versions by path.

    Hidden files are left out. Folders that a glob matches, and files of other formats, are named in the log. Raises
    ConfigError, which names `location`, if nothing is left.
    """
    is_file = files.isfile(root)  # also if its name has brackets
    is_glob = not is_file and any(mark in root for mark in "*?[")
    pattern = root if is_file or is_glob else f"{root}/**"
    listed = {root: files.info(root)} if is_file else (files.glob if is_glob else files.find)(root, detail=True)
    if not listed and not is_glob and not files.exists(root):
        raise ConfigError(f"{redact_input(location)} does not exist")
    shown = {name: info for name, info in sorted(listed.items()) if not is_hidden(name, pattern)}
    found = {name: _of_target(files, name, info) for name, info in shown.items()}
    candidates = {name: info for name, info in found.items() if info["type"] != "directory"}
    known = {name: version_of(info) for name, info in candidates.items() if format_of(name)}
    others = [name for name in candidates if name not in known]
    folders = _unread_folders(found)
    instead = f"give the files in them, such as {folders[0] if '**' in pattern else root}/*" if folders else ""
    if known and others:
        log.warning("skipping files of no known format %s; known are %s", _counted(others), known_formats())
    if known and folders:
        log.warning("skipping folders %s; %s", _counted(folders), instead)
    hidden = [name for name, info in sorted(listed.items()) if name not in shown and info["type"] != "directory"]
    if not known:
        raise ConfigError(f"{redact_input(location)} {_why_none(others, folders, hidden, instead)}")
    return known


def _why_none(others: Sequence[str], folders: Sequence[str], hidden: Sequence[str], instead: str) -> str:
    """Returns what a location without data has."""
    if folders and not others:
        return f"has only folders {_counted(folders)}; {instead}"
    if hidden and not others:
        return (
            f"has only hidden files {_counted(hidden)}; to read files whose names or folders begin with . or _, name "
            "them in a glob, such as _*.parquet"
        )
    return f"has no file of a known format; known are {known_formats()}"


def is_hidden(path: str, pattern: str) -> bool:
    """Whether the name of a file or of one of its folders says that it is not data: it begins with `.` or `_`.

    `pattern` is the glob that matches `path`. A name counts only if the glob's text for it does not begin so too, as in
    a shell. A folder such as `_day=1` is a partition, whose files are data.
    """
    names, globs = path.strip("/").split("/"), pattern.strip("/").split("/")
    if "**" in globs:  # stands for any number of folders; with several, all between the first and the last
        before, after = globs[: globs.index("**")], globs[len(globs) - globs[::-1].index("**") :]
        globs = [*before, *["**"] * (len(names) - len(before) - len(after)), *after]
    return any(_begins_hidden(name) and glob[:1] not in {".", "_"} for name, glob in zip(names, globs, strict=False))


def _begins_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def version_of(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what differs between versions of a file: its size, and its tag or time of change."""
    tags = ("ETag", "etag", "md5Hash", "generation", "blob_id", "mtime")
    return {"size": info["size"], **{tag: str(info[tag]) for tag in tags if info.get(tag)}}


def _of_target(files: FileSystem, name: str, info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the info of what a link points to, which a list of a folder lacks; a link to nothing has its own."""
    with suppress(FileNotFoundError):
        return files.info(name) if info.get("islink") else info
    return info


def _unread_folders(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the folders among paths of which no path is within them."""
    parents = {str(parent) for name in found for parent in PurePosixPath(name).parents}
    return [name for name, info in found.items() if info["type"] == "directory" and name not in parents]


def _counted(names: Sequence[str]) -> str:
    """Returns the number of names and the first ones."""
    return f"({len(names)}): {', '.join(names[:3])}" + ", …" * (len(names) > 3)
