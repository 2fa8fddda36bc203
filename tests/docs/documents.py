"""The project's documents: their fenced blocks, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(
    sorted(
        [ROOT / "benchmarks" / "README.md", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    )
)

# The line before a block may say why it is not run, or in which environment of scripts/test_envs.sh it is.
_BLOCK = re.compile(
    r"^(?:<!-- (?:not run: (?P<reason>.*?)|run in (?P<venv>\.venv-[\w-]+)) -->\n)?"
    r"```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_ANCHOR = re.compile(r'<a id="([^"]+)">')


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    document: Path
    line: int  # of its fence, counted from 1
    language: str
    text: str
    reason: str | None  # why it is not run; None: it is
    venv: str | None  # the environment it runs in; None: the project's own

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@cache
def blocks() -> tuple[Block, ...]:
    """The fenced blocks of all documents."""
    return tuple(block for document in DOCUMENTS for block in _blocks(document))


def links(document: Path) -> Iterator[str]:
    """The targets of a document's links, those inside code left out."""
    yield from _LINK.findall(_INLINE_CODE.sub("", _prose(document)))


def inline_code(document: Path) -> list[str]:
    """The pieces of inline code of a document."""
    return _INLINE_CODE.findall(_prose(document))


@cache
def anchors(document: Path) -> frozenset[str]:
    """The names in a document that a link may end with, made from its headings as GitHub makes them."""
    text = _prose(document)
    return frozenset(map(_slug, _HEADING.findall(text))) | frozenset(_ANCHOR.findall(text))


def table_rows(document: Path, heading: str) -> list[list[str]]:
    """The cells of the rows of the table under a heading, its head left out."""
    text = document.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## {heading}\n")
    if not found:
        raise AssertionError(f"{document} has no heading {heading!r}")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code_in(cell: str) -> list[str]:
    """The pieces of inline code in a cell."""
    return _INLINE_CODE.findall(cell)


def _prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return _BLOCK.sub("", document.read_text(encoding="utf-8"))


def _blocks(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(document, line, match["language"], match["text"], match["reason"], match["venv"])


def _slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
