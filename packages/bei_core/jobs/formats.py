"""The file formats of data sets, chosen by the end of the file name."""

from __future__ import annotations

from bei_core.jobs import compressed
from bei_core.jobs.columns import ArrowFile, ParquetFile
from bei_core.jobs.datafile import DataFile
from bei_core.jobs.lines import CsvFile, JsonLinesFile, Lines, TextFile, TsvFile

FORMATS: tuple[type[DataFile], ...] = (ParquetFile, ArrowFile, JsonLinesFile, CsvFile, TsvFile, TextFile)


def format_of(path: str) -> type[DataFile] | None:
    """The format of a file by the end of its name; None for another kind of file."""
    name = compressed.strip_extension(path)
    found = next((each for each in FORMATS if name.endswith(each.extensions)), None)
    return None if found is None or (name != path.lower() and not issubclass(found, Lines)) else found


def known_formats() -> str:
    """Returns the supported extensions in one line, for errors and help."""
    found = ", ".join(end for each in FORMATS for end in each.extensions)
    return f"{found} (those of lines also with {', '.join(compressed.EXTENSIONS)})"
