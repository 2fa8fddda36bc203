"""What `bei embed`, `bei rerank` and `bei classify` share: texts in, the answers of a server's routes, rows out."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bei_core.cli.flags import OutputFile, load_settings, settings_flags
from bei_core.config.one_model import one_model
from bei_core.errors import ConfigError

if TYPE_CHECKING:
    from bei_core.models.kind import Kind
    from bei_core.serving.service import Service

Row = Mapping[str, Any]  # the columns of one line of output

_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_SHOWN = 60  # characters of a cell of a table


def flags() -> list[click.Parameter]:
    """The settings' flags, and those that say where texts come from and where answers go."""
    return [
        *settings_flags(),
        click.Option(
            ["--input", "file"],
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="File with one text a line.",
        ),
        click.Option(
            ["--format", "shape"],
            type=click.Choice(["json", "table", "parquet"]),
            default="json",
            show_default=True,
            help="One JSON value a line, a table for people, or a Parquet file (pip install 'bei-core[parquet]').",
        ),
        click.Option(["--output"], type=OutputFile(), help="File to write. [default: standard output]"),
    ]


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The texts of a command line, or the lines of a file, or for `-` of standard input.

    Raises ConfigError if there is none, and for one that is empty or not UTF-8.
    """
    if file is not None and texts:
        raise ConfigError("texts are given both as arguments and by --input; give one of the two")
    if file is not None:
        found, unit, where = _lines(file.read_bytes()), "line", f" of {file}"
    elif tuple(texts) == ("-",):
        found, unit, where = _lines(sys.stdin.buffer.read()), "line", " of standard input"
    else:
        found, unit, where = list(texts), "text", ""
    if not found:
        raise ConfigError("no text is given; give texts, - for the lines of standard input, or --input FILE")
    for number, text in enumerate(found, 1):
        if not text:
            raise ConfigError(f"{unit} {number}{where} is empty; leave it out")
        if _NOT_UTF8.search(text):
            raise ConfigError(f"{unit} {number}{where} is not UTF-8")
    return found


def _lines(data: bytes) -> list[str]:
    """The lines of a text, without its byte order mark. Bytes that are not UTF-8 become surrogates, as in argv."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def check_format(shape: str, output: Path | None) -> None:
    """Raises ConfigError if answers cannot be written so: Parquet without a file or without pyarrow."""
    if shape != "parquet":
        return
    if output is None:
        raise ConfigError("--format parquet needs --output FILE")
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError("--format parquet needs pyarrow; pip install 'bei-core[parquet]'") from error


@contextmanager
def served(settings_of: Mapping[str, object], *kinds: Kind) -> Iterator[Service]:
    """The service of a command line's model until the block ends. Raises WrongTaskError if it is of none of `kinds`."""
    from bei_core.serving.service import Service

    service = Service.open(one_model(load_settings(settings_of)))
    try:
        service.model.check_kind(kinds)
        yield service
    finally:
        service.close()


def ask(service: Service, body: Any) -> Any:  # noqa: ANN401
    """The value of the reply to the body of a route, a struct of `http/schemas`. Raises as the route does."""
    from bei_core.http.schemas.common import RequestContext

    result = asyncio.run(service.run(body.to_task(service.model)))
    return body.to_reply(result, RequestContext(service.model, ""))


def in_requests(service: Service, texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in runs that one request may have."""
    size = service.model.max_inputs
    yield from (texts[start : start + size] for start in range(0, len(texts), size))


def write(rows: Sequence[Row], shape: str, output: Path | None, *, bare: str | None = None) -> None:
    """Writes rows as JSON lines, as a table or as Parquet. With `bare`, a line of JSON is the value of that column."""
    if shape == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), output)
        return
    lines = _table(rows) if shape == "table" else (json.dumps(row[bare] if bare else row) for row in rows)
    with click.open_file(str(output or "-"), "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines with one row each below the columns' names, padded to the widest cell."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    """A value in at most `_SHOWN` characters; of a vector its first numbers and its length."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list) and value and isinstance(value[0], float):
        first = ", ".join(f"{number:.4f}" for number in value[:4])
        return f"[{first}, … {len(value)} numbers]"
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
