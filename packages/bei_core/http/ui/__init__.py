"""The web pages: `/` to try the model, `/docs` to read the API reference. Each is one HTML file."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from bei_core.http.replies import Plain
from bei_core.http.route import Call, Route

_PART = re.compile(r"(?:/\*|<!--)([a-z]+\.[a-z]+)(?:\*/|-->)")  # the name of a file of this folder


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
    """Returns a page as HTML, with the style sheet, the scripts and the parts that both pages have."""
    return Plain(_with_parts(f"{name}.html").encode(), "text/html; charset=utf-8")


def _with_parts(file: str) -> str:
    """Returns a file's text, with the files that its comments name in place of the comments."""
    return _PART.sub(lambda found: _with_parts(found[1]), (files(__name__) / file).read_text("utf-8"))
