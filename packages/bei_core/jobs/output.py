"""The output folder of a job. Parts are published atomically; a job that is resumed computes only the missing parts.

_job.json               what the job is: its input, its options, the model; another job is refused
part-00000.parquet      the output of a part
_rejected-00000.jsonl   its rows that were rejected, with the reason; only if there are any
_manifest.json          the parts and the input rows of each; written last, so it means that the job is done

Readers of Parquet folders skip names that begin with `_` or `.`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bei_core.errors import BeiError, ConfigError
from bei_core.jobs.inputs import Part
from bei_core.storage.backends import Memory, backend_of, redact, redact_input
from bei_core.storage.cache import TEMP_SUFFIX, write_atomically
from bei_core.storage.errors import OUTPUT, retry_transient, translate_os_errors
from bei_core.storage.locks import try_lock_file
from bei_core.storage.objects import ObjectStore, absolute_location, matches_glob

JOB, MANIFEST, _LOCK = "_job.json", "_manifest.json", ".lock"

_FLOATS = {"FLOAT", "DOUBLE"}  # Parquet's names


def part_name(part: Part) -> str:
    """Returns the name of the file with the output of a part."""
    return f"part-{part.index:0{part.digits}}.parquet"


def rejected_name(part: Part) -> str:
    """Returns the name of the file with the rejected rows of a part."""
    return f"_rejected-{part.index:0{part.digits}}.jsonl"


class Folder:
    """A local folder or a folder of an object store, in which files appear whole or not at all."""

    def __init__(self, location: str) -> None:
        """Raises StartError for a URL of neither a folder nor an object store, or of one that ends with the process."""
        self.location = absolute_location(location)
        self._store = ObjectStore(location) if "://" in self.location else None
        self._path = Path(self.location)
        if self._store is not None and ("?" in location or "#" in location):
            raise ConfigError(f"{redact(location)}: the URL of an output has no ? and no #")
        if self._store is not None and isinstance(backend_of(location), Memory):
            raise ConfigError(f"{redact(location)} ends with this process; give a folder or an object store")

    def check_outside(self, source: str) -> None:
        """Raises ConfigError if the folder is in the input: a job that is resumed would read its own parts."""
        outer, inner = (
            PurePosixPath(each if "://" in each else Path(each).resolve())
            for each in (absolute_location(source), self.location)
        )
        if inner.is_relative_to(outer) or matches_glob(str(inner / "part-00000.parquet"), str(outer)):
            raise ConfigError(
                f"the output {redact(self.location)} is in the input {redact_input(source)}; give a folder outside it"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of a local folder until the block ends; an object store has no lock.

        Raises ConfigError if the folder has files that are not those of a job, or another process of this machine has
        the lock.
        """
        if self._store is not None:
            self._check_is_output()
            yield
            return
        with translate_os_errors(self._path, OUTPUT):
            self._path.mkdir(parents=True, exist_ok=True)
        self._check_is_output()
        with try_lock_file(self._path / _LOCK) as taken:
            if not taken:
                raise ConfigError(f"another job writes in {self.location}")
            self._remove_leftovers()
            yield
            self._remove_leftovers()

    def check_shared(self) -> None:
        """Raises BeiError if a local folder has no lock file, so that of the process that began the job is another."""
        if self._store is None and not (self._path / _LOCK).exists():
            raise BeiError(
                f"{self.location} on this node ({socket.gethostname()}) is not the folder of the node that began the "
                "job; give a folder that all nodes share, or an object store"
            )

    def _check_is_output(self) -> None:
        """Raises ConfigError if there are files and no _job.json. Hidden files do not count."""
        names = {name for name in self.names() if name and not name.startswith(".")}
        if names and JOB not in names:
            raise ConfigError(
                f"{redact(self.location)} has files that are not the output of a job, such as {min(names)}; "
                "give a new or an empty folder"
            )

    def _remove_leftovers(self) -> None:
        """Removes the unfinished files of processes that were killed."""
        for leftover in self._path.glob(f".*{TEMP_SUFFIX}"):
            leftover.unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Returns the names of the files in the folder."""
        if self._store is not None:
            return set(retry_transient(self._store.list, self.location))
        with translate_os_errors(self._path, OUTPUT):
            return {path.name for path in self._path.iterdir()}

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file; None if it does not exist."""
        store = self._store
        if store is not None:
            return retry_transient(lambda: store.read(name), f"{self.location}/{name}")
        path = self._path / name
        with translate_os_errors(self._path, OUTPUT):
            return path.read_bytes() if path.exists() else None

    def publish(self, name: str, content: bytes | pa.Buffer) -> None:
        """Writes a file atomically: also after a power failure, it is complete or absent. Raises DiskError."""
        if self._store is not None:
            return self._store.write(name, bytes(content))
        with translate_os_errors(self._path, OUTPUT):
            write_atomically(self._path / name, memoryview(content), durable=True)

    def delete(self, name: str) -> None:
        """Deletes a file, if it exists."""
        if self._store is not None:
            return self._store.delete(name)
        with translate_os_errors(self._path, OUTPUT):
            (self._path / name).unlink(missing_ok=True)


class Output:
    """The output folder of one job."""

    def __init__(self, folder: Folder, metadata: Mapping[str, str]) -> None:
        """`metadata` is written into every Parquet file."""
        self.folder = folder
        self._metadata = {f"bei.{name}": value for name, value in metadata.items()}

    def begin(self, job: Mapping[str, Any]) -> None:
        """Writes `job` to _job.json if there is none; see `check`."""
        if self.folder.read(JOB) is None:
            self.folder.publish(JOB, _json(job))

    def check(self, job: Mapping[str, Any]) -> None:
        """Raises ConfigError if there is a _job.json that describes another job."""
        found = self.folder.read(JOB)
        if found is None:
            return
        before = _decoded(found)
        if before is None:
            raise ConfigError(f"{JOB} in {redact(self.folder.location)} is damaged; give another folder, or delete it")
        for name, value in msgspec.json.decode(_json(job)).items():
            if before.get(name) != value:
                was, now = (_short(each) for each in _difference(before.get(name), value))
                raise ConfigError(
                    f"{redact(self.folder.location)} is the output of another job: its `{name}` was {was}, not {now}; "
                    "give another folder, or delete it"
                )

    def publish(self, part: Part, table: pa.Table, rejected: Mapping[int, str]) -> None:
        """Publishes a part. Its rejected rows are written first, so a part that is listed is complete."""
        if rejected:
            lines = [
                msgspec.json.encode({"file": part.path, "row": part.split.first + row, "reason": reason})
                for row, reason in sorted(rejected.items())
            ]
            self.folder.publish(rejected_name(part), b"".join(line + b"\n" for line in lines))
        else:
            self.folder.delete(rejected_name(part))  # of a run that was stopped, in which the engine failed on a row
        counts = {"bei.rows": str(part.split.num_rows), "bei.rejected": str(len(rejected))}
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata({**self._metadata, **counts})
        pq.write_table(table, sink, **_write_options(table.schema))
        self.folder.publish(part_name(part), sink.getvalue())


def _write_options(schema: pa.Schema) -> dict[str, Any]:
    """Returns how the columns are written into a Parquet file, by their paths in it.

    Floats get no dictionary, which takes as long as the rest of the file and makes it larger. Vectors, which are lists
    of floats, are not compressed either and have no statistics: zstd makes them 8% smaller, but both take 2% of the
    throughput of a job, and the least and largest numbers of vectors are of no use to a query.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    found = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    columns = [found.column(index) for index in range(len(found))]
    floats = {each.path for each in columns if each.physical_type in _FLOATS or each.logical_type.type == "FLOAT16"}
    vectors = {path for path in floats if path.endswith(".list.element")}
    return {
        "compression": {each.path: "none" if each.path in vectors else "zstd" for each in columns},
        "use_dictionary": [each.path for each in columns if each.path not in floats],
        "write_statistics": [each.path for each in columns if each.path not in vectors],
    }


def missing_parts(folder: Folder, parts: Sequence[Part]) -> list[Part]:
    """Returns the parts that are not published yet."""
    names = folder.names()
    return [part for part in parts if part_name(part) not in names]


def read_columns(folder: Folder, part: Part, columns: Sequence[str]) -> pa.Table:
    """Returns columns of the output of a part that is published."""
    return pq.read_table(pa.BufferReader(folder.read(part_name(part)) or b""), columns=list(columns))


def write_manifest(folder: Folder, parts: Sequence[Part]) -> None:
    """Writes _manifest.json with all parts. Raises BeiError if one of them is not in the folder."""
    if missing := missing_parts(folder, parts):
        raise BeiError(
            f"{redact(folder.location)} has no {part_name(missing[0])} ({len(missing)} of {len(parts)} parts are "
            "missing), although it was written: workers on nodes that do not share this folder write into their own; "
            "give a shared folder or an object store, and start the job again"
        )
    listed = [
        {"name": part_name(part), "file": part.path, "first_row": part.split.first, "rows": part.split.num_rows}
        for part in parts
    ]
    folder.publish(MANIFEST, _json({"rows": sum(part.split.num_rows for part in parts), "parts": listed}))


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def _decoded(content: bytes) -> dict[str, Any] | None:
    """Returns the object in JSON; None if there is none."""
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _difference(before: Any, now: Any) -> tuple[Any, Any]:  # noqa: ANN401 - JSON
    """Returns the two values; if both are objects, only the first key whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next((name for name in sorted({*before, *now}) if before.get(name) != now.get(name)), None)
        if name is not None:
            return {name: before.get(name)}, {name: now.get(name)}
    return before, now


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"
