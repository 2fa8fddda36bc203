"""The files of a data set, and the parts that a job divides them into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bei_core.config.convert import is_unicode
from bei_core.errors import CheckpointError, ConfigError
from bei_core.jobs.compressed import open_decompressed
from bei_core.jobs.datafile import DataFile, Rows, Split, translate_read_errors
from bei_core.jobs.formats import format_of, known_formats
from bei_core.jobs.listing import list_data, version_of
from bei_core.jobs.options import JobOptions
from bei_core.storage.backends import redact_input
from bei_core.storage.errors import TransientError, retry_transient, translate_store_errors
from bei_core.storage.objects import StoreFile, absolute_location, open_location

ResultT = TypeVar("ResultT")


class Part(msgspec.Struct, frozen=True):
    """Some rows of one file: the unit of work, and one file of the output."""

    index: int  # among all parts of the job
    path: str  # the file, as the location names it
    split: Split
    digits: int = 5  # of the index in file names, so that the order of names is that of parts


@dataclass(frozen=True, slots=True)
class Input:
    """A data set: files in the order of their names."""

    location: str
    files: Mapping[str, Mapping[str, Any]]  # size and version of each file by its path
    schema: pa.Schema  # of the columns that are copied
    parts: Sequence[Part]

    def identity(self) -> Mapping[str, Any]:
        """Returns what identifies the data set, for _job.json: location, files, and columns to copy."""
        return {"location": redact_input(self.location), "files": self.files, "keep": self.schema.to_string()}


class Reader:
    """Reads parts. It keeps the last file open, because parts mostly come in order."""

    def __init__(
        self, location: str, versions: Mapping[str, Mapping[str, Any]] | None = None, hf_token: str | None = None
    ) -> None:
        """`versions` are those that the files must have, by path; without them, any is read."""
        self._files, self._root = open_location(location, hf_token)
        self._location = location
        self._scheme = location.partition("://")[0] if "://" in location else ""  # "" for paths of this machine
        self._versions = versions
        self._path = ""
        self._open: AbstractContextManager[Any] | None = None
        self._file: DataFile | None = None

    def file(self, path: str) -> DataFile:
        """Returns an open file of the data set. Raises ConfigError if its format is unknown."""
        if path != self._path or self._file is None:
            self.close()
            kind = format_of(path)
            if kind is None:
                raise ConfigError(f"{path} is of no known format; known are {known_formats()}")
            with self._translated(path):
                self._open = self._files.open(path, "rb")
                file = self._open.__enter__()
            if self._scheme:
                file = StoreFile(file, f"{self._scheme}://{path}")
            self._file, self._path = kind(path, open_decompressed(path, file)), path
        return self._file

    def read(self, part: Part, options: JobOptions, schema: pa.Schema) -> Rows:
        """Returns the rows of a part. Raises CheckpointError if the file cannot be read, or is not what it was."""
        # The driver of the hub keeps its list of a folder; the others have none. `expand_info` is for the blob_id.
        fresh = {"refresh": True, "expand_info": True} if self._scheme == "hf" else {}

        def read(file: DataFile) -> tuple[Rows, Mapping[str, Any]]:
            rows = file.read(part.split, options.text_columns, schema)
            with self._translated(part.path):
                return rows, version_of(self._files.info(part.path, **fresh))

        rows, version = self.retry(read, part.path)
        if self._versions is not None and version != self._versions[part.path]:
            raise CheckpointError(
                f"{part.path} has changed since the job began; start it in another folder, with a copy of the file"
            )
        return rows

    def retry(self, read: Callable[[DataFile], ResultT], path: str) -> ResultT:
        """Returns what `read` returns of an open file. If a store fails, the file is opened and read again.

        Raises CheckpointError if the file cannot be read.
        """

        def attempt() -> ResultT:
            try:
                with translate_read_errors(path):
                    return read(self.file(path))
            except TransientError:
                self.close()  # what its reader holds may end within a row
                raise

        return retry_transient(attempt, path)

    def _translated(self, path: str) -> AbstractContextManager[None]:
        """Translates what the driver of a store raises in the block; other locations have no driver."""
        if not self._scheme:
            return nullcontext()
        return translate_store_errors(f"{self._scheme}://{path}", show=redact_input)

    def close(self) -> None:
        """Close the open file."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open, self._file, self._path = None, None, ""

    def list(self) -> dict[str, Mapping[str, Any]]:
        """Returns the files at the location: versions by path. Raises ConfigError if there is none; see `list_data`."""

        def attempt() -> dict[str, Mapping[str, Any]]:
            with self._translated(self._root):
                return list_data(self._files, self._root, self._location)

        return retry_transient(attempt, self._location)


def open_input(location: str, options: JobOptions, hf_token: str | None = None) -> Input:
    """Returns a data set with its parts. To find the parts of files of lines, it reads these files once.

    Raises ConfigError if there is no file or a column is missing, CheckpointError if a file cannot be read.
    """
    location = absolute_location(location)
    reader = Reader(location, hf_token=hf_token)
    files = reader.list()
    splits, schema, exact = list[tuple[str, Split]](), pa.schema([]), dict[pa.Schema, str]()
    for path in files:
        if not is_unicode(path):
            raise ConfigError(f"the name of the file {path!r} is not UTF-8; rename it")
        planned = reader.retry(lambda file: _planned(file, options, is_only=len(files) == 1), path)
        if planned is None:
            continue
        columns, found, has_types = planned
        schema = _unified(schema, columns, path) if splits else columns
        if has_types:
            exact.setdefault(columns, path)
        splits += [(path, split) for split in found]
    reader.close()
    _check_exact(exact, schema)
    schema = _without_nulls(schema)
    _check_copied(schema)
    digits = max(5, len(str(len(splits) - 1)))
    parts = [Part(index, path, split, digits) for index, (path, split) in enumerate(splits)]
    return Input(location, files, schema, parts)


def _planned(file: DataFile, options: JobOptions, *, is_only: bool) -> tuple[pa.Schema, list[Split], bool] | None:
    """Returns the types of the columns to copy, the splits, and whether the file says its types.

    None for a file without bytes, unless it is the only one. Raises ConfigError if a column is missing or twice, or a
    column of texts has none.
    """
    if not is_only and file.is_empty():
        return None
    names = file.columns()
    for column in (*options.text_columns, *options.keep):
        if column not in names:
            raise ConfigError(f"{file.name} has no column {column!r}; it has {', '.join(names) or 'none'}")
        if names.count(column) > 1:
            raise ConfigError(f"{file.name} has {names.count(column)} columns {column!r}; rename all but one")
    for column in options.text_columns:
        if kind := file.type_instead_of_text(column):
            raise ConfigError(f"{file.name}: the column {column!r} has no texts, but values of type {kind}")
    return file.schema(options.keep), list(file.splits(options.rows_per_part)), file.has_types


def _unified(before: pa.Schema, columns: pa.Schema, path: str) -> pa.Schema:
    """Returns the types of the columns of all files; of two it is the wider one, such as int64 for int32 and int64.

    Raises ConfigError if the values of a column have no type in common.
    """
    try:
        return pa.unify_schemas([before, columns], promote_options="permissive")
    except pa.ArrowException as error:
        raise ConfigError(
            f"{path} has the columns {_inline(columns)}, the files before it {_inline(before)}"
        ) from error


def _check_exact(exact: Mapping[pa.Schema, str], schema: pa.Schema) -> None:
    """Raises ConfigError if whole numbers of a file with types would become floats, which change those over 2^53.

    `exact` maps the types of such files to the first file that has them, and `schema` has those of all files.
    """
    for columns, path in exact.items():
        for column in columns:
            wider = schema.field(column.name).type
            if _becomes_float(column.type, wider):
                raise ConfigError(
                    f"`keep` has {column.name}, which is {column.type} in {path} and {wider} with the other files, so "
                    "its whole numbers would change; write one type into all files, or leave the column out"
                )


def _becomes_float(kind: pa.DataType, wider: pa.DataType) -> bool:
    """Whether integers or decimals of a type, also in lists and objects, are floats in the type that replaces it."""
    if kind == wider:
        return False
    if pa.types.is_struct(kind):
        return any(_becomes_float(field.type, wider.field(field.name).type) for field in kind)
    if kind.num_fields and wider.num_fields:
        return any(_becomes_float(kind.field(i).type, wider.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_floating(wider) and (pa.types.is_integer(kind) or pa.types.is_decimal(kind)))


def _without_nulls(schema: pa.Schema) -> pa.Schema:
    """Returns the types with text in place of null, the type of a column whose first values are all null."""
    return pa.schema([each.with_type(pa.string()) if pa.types.is_null(each.type) else each for each in schema])


def _check_copied(schema: pa.Schema) -> None:
    """Raises ConfigError if pyarrow cannot copy a column: select its rows, and write them into Parquet."""
    empty = schema.empty_table()
    for column in schema.names:
        try:
            pq.write_table(empty.select([column]).take(pa.array([], pa.int64())), pa.BufferOutputStream())
        except pa.ArrowException as error:
            kind = schema.field(column).type
            raise ConfigError(
                f"`keep` has {column}, of the type {kind}, which cannot be copied into Parquet; leave it out"
            ) from error


def _inline(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
