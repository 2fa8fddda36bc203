"""The web pages: `/` to try the model, `/docs` to read the API reference. Each is one HTML file."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from bei_core.http.replies import Plain
from bei_core.http.route import Call, Route

_PART = re.compile(r"/\*(style|common|index|docs)\*/")


async def _index(call: Call) -> Plain:
    """Returns the page for `GET /`."""
    return _page("index")


async def _docs(call: Call) -> Plain:
    """Returns the page for `GET /docs`."""
    return _page("docs")


PAGES = (
    Route("GET", "/", "a page to try the model", answer=_index, public=True),
    Route("GET", "/docs", "the API reference as a page", answer=_docs, public=True),
)


@cache
def _page(name: str) -> Plain:
    """Returns a page as HTML, with its style sheet and scripts inserted."""
    folder = files(__name__)

    def part(found: re.Match[str]) -> str:
        kind = "css" if found[1] == "style" else "js"
        return (folder / f"{found[1]}.{kind}").read_text("utf-8")

    html = (folder / f"{name}.html").read_text("utf-8")
    return Plain(_PART.sub(part, html).encode(), "text/html; charset=utf-8")
