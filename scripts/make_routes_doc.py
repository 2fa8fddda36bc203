"""Writes the table of routes in docs/routes.md from the rows of `http/schemas/`. Run it after a change of a route."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bei_core.http.openapi import DESCRIPTION
from bei_core.http.routes import WRITTEN_ROUTES
from bei_core.http.ui import PAGES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "routes.md"

START = (
    "<!-- Written by scripts/make_routes_doc.py from packages/bei_core/http/schemas/. Change the routes there. -->\n"
)
END = "\nA model that cannot do"


def page(written: str) -> str:
    """The page with the table of today's routes in place of the one that was written."""
    before, _, rest = written.partition(START)
    return "".join((before, START, *_lines(), rest[rest.index(END) :]))


def _lines() -> Iterator[str]:
    yield "\n| route | what it does |\n|---|---|\n"
    for route in WRITTEN_ROUTES:
        yield _line(f"{route.method} {route.path}", *route.aliases, summary=route.summary)
    first, *others = (route.path for route in DESCRIPTION)
    yield _line(f"GET {first}", *others, summary=DESCRIPTION[0].summary)
    for route in PAGES:
        yield _line(f"GET {route.path}", summary=f"{route.summary}, unless `--no-ui`")


def _line(*codes: str, summary: str) -> str:
    return f"| {', '.join(f'`{code}`' for code in codes)} | {summary} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
