"""Links between documents, to files and to headings lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, ROOT, anchors, inline_code, links

# Inline code that names a file or folder of the repository, or a module of the library.
_PATH = re.compile(r"(benchmarks|docs|examples|model|packages|requirements|scripts|tests)/[\w./*-]+")
_MODULE = re.compile(r"\w+(/\w+)*\.py")


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    broken = []
    for link in links(document):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: there is no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: {name_of(target)} has no such heading")
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(document: Path) -> None:
    named = [code for code in inline_code(document) if _PATH.fullmatch(code)]
    assert [code for code in named if not list(ROOT.glob(code))] == []


def test_modules_named_for_contributors_exist() -> None:
    named = [code for code in inline_code(ROOT / "CONTRIBUTING.md") if _MODULE.fullmatch(code)]
    assert named
    places = [ROOT, ROOT / "packages" / "bei_core"]
    assert [code for code in named if not any((place / code).is_file() for place in places)] == []


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    assert {path.name for path in folder.glob("[0-9]*.md")} <= set(links(folder / "README.md"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700
