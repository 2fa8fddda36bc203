"""The documents list exactly the routes, errors, metrics and log lines of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from bei_core.config.settings import Settings
from bei_core.errors import RequestError
from bei_core.http import openapi
from bei_core.http.routes import ROUTES
from bei_core.http.ui import PAGES
from bei_core.metrics import Metrics
from scripts import make_routes_doc
from tests.docs.documents import ROOT, code_in, table_rows

OPERATIONS = ROOT / "docs" / "operations.md"
ROUTES_PAGE = ROOT / "docs" / "routes.md"
LIBRARY = ROOT / "packages" / "bei_core"

_PLACEHOLDER = re.compile(r"%[-\d.]*[sdfrg]|\0")  # of a log line's format, or of an f-string
_LOGS = {"debug", "info", "warning", "error", "exception", "_give_up"}  # methods that log their first argument
_TELLING = 8  # characters of a message besides what is filled in; fewer would match any line


def test_routes() -> None:
    rows = table_rows(ROUTES_PAGE, "All routes")
    listed = {path for row in rows for code in code_in(row[0]) for path in code.split() if path.startswith("/")}
    assert listed == {*openapi.document()["paths"], *(route.path for route in (*openapi.DESCRIPTION, *PAGES))}


def test_the_table_of_routes_is_made_from_the_routes() -> None:
    written = make_routes_doc.PAGE.read_text(encoding="utf-8")
    assert written == make_routes_doc.page(written), "run .venv/bin/python -m scripts.make_routes_doc"


def test_fields() -> None:
    schemas = openapi.document()["components"]["schemas"]
    refs = {route.schema.__name__ for route in ROUTES if route.schema}
    fields = {name for ref in refs for name in schemas[ref]["properties"]}
    listed = {name for row in table_rows(ROUTES_PAGE, "Fields") for name in code_in(row[0])}
    assert listed == fields


def test_limits_are_settings() -> None:
    listed = {name for row in table_rows(OPERATIONS, "Limits") for name in code_in(row[0])}
    assert listed
    assert listed <= set(Settings.__struct_fields__)


def test_errors() -> None:
    listed = {(code_in(row[1])[0], int(row[0])) for row in table_rows(OPERATIONS, "Errors that clients get")}
    kinds = {(kind.kind, kind.status) for kind in RequestError.__subclasses__()}
    assert kinds <= listed
    # The server itself answers requests that do not reach a route.
    sources = [path.read_text(encoding="utf-8") for path in (LIBRARY / "http" / "server").glob("*.py")]
    statuses = {int(status) for source in sources for status in re.findall(r"(?:HttpError|refuse)\((\d{3})", source)}
    assert {408, 431, 500} <= statuses
    assert {status for _, status in listed - kinds} == statuses - {status for _, status in kinds}


def test_metrics() -> None:
    listed = {code_in(row[0])[0].partition("{")[0] for row in table_rows(OPERATIONS, "Metrics")}
    assert listed == {line.split()[2] for line in Metrics().render().decode().splitlines() if line.startswith("# TYPE")}


def test_log_lines_are_written_so() -> None:
    """`<…>` in a document stands for what the program fills in."""
    parts = [_PLACEHOLDER.split(text) for text in log_messages()]
    written = [re.compile(".+".join(map(re.escape, texts))) for texts in parts if len("".join(texts)) >= _TELLING]
    listed = [line for row in table_rows(OPERATIONS, "Log lines") for line in code_in(row[0])]
    assert listed
    assert [line for line in listed if not any(pattern.fullmatch(line) for pattern in written)] == []


def log_messages() -> Iterator[str]:
    """The message of every call that logs one, with logging's placeholders, or `\\0` for each value in an f-string."""
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOGS:
                parts = [part for part in node.args[:1] if isinstance(part, (ast.Constant, ast.JoinedStr))]
                yield from map(text_of, parts)


def text_of(node: ast.Constant | ast.JoinedStr) -> str:
    """The text of a literal or of an f-string."""
    parts = [node] if isinstance(node, ast.Constant) else node.values
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts)
