"""The report of the quality gate, and where it is kept."""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bei_core.engines.quality import Array, Bar, Comparison
from bei_core.engines.quality_report import REPORT
from bei_core.errors import QualityError
from bei_core.models.kind import Kind
from bei_core.tasks import Pair, Templated

ROWS = np.eye(4, dtype=np.float32)
TEXTS = ("good", Pair("what", "<script>alert(1)</script>"), Templated("prompt", 0, 6), [1, 2])


class Tags(HTMLParser):
    """The tags of a page, and what its attributes name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}


def report_of(folder: Path, candidate: Array, bar: Bar) -> str:
    Comparison(TEXTS, ROWS, candidate).check(Kind.EMBEDDING, bar, folder, "owner/name in int8")
    return (folder / REPORT).read_text()


def test_the_worst_inputs_come_first(tmp_path: Path) -> None:
    candidate = ROWS + 0.5 * np.roll(ROWS, 1, axis=1) * np.array([[0], [2], [1], [0]])
    page = report_of(tmp_path, candidate.astype(np.float32), Bar(mean_cosine=0.1))
    worst = re.findall(r"<tr><td>([\d.]+)</td><td>([^<]*)</td></tr>", page)
    assert [text for _, text in worst][:2] == ["what / &lt;script&gt;alert(1)&lt;/script&gt;", "prompt"]
    assert [cosine for cosine, _ in worst] == sorted(cosine for cosine, _ in worst)
    assert "<td>mean cosine</td>" in page
    assert "<td>at least 0.1</td>" in page


def test_it_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    page = report_of(tmp_path, ROWS, Bar())
    tags = Tags(page)
    assert tags.open.count("rect") == 30
    assert not tags.attributes & {"src", "href"}
    assert not {"script", "link", "img"} & set(tags.open)
    assert "http" not in page


def test_a_text_with_rows_of_tokens_counts_by_its_worst_token(tmp_path: Path) -> None:
    candidate = ROWS.copy()
    candidate[2] = 1
    comparison = Comparison(("first", "second"), ROWS, candidate, [1, 3])
    assert comparison.by_text().tolist() == [1.0, 0.5]


def test_a_row_that_is_not_a_number_is_no_obstacle(tmp_path: Path) -> None:
    candidate = ROWS.copy()
    candidate[0] = np.nan
    with pytest.raises(QualityError):
        report_of(tmp_path, candidate, Bar())
    assert "nan" in (tmp_path / REPORT).read_text()


def test_a_refused_engine_leaves_its_report(tmp_path: Path) -> None:
    with pytest.raises(QualityError):
        report_of(tmp_path, -ROWS, Bar())
    assert "-1.0000" in (tmp_path / REPORT).read_text()


def test_a_build_keeps_the_report_beside_the_engines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from bei_core.engines.build import _keep_report

    folder, target = tmp_path / "engine", tmp_path / "cache" / "reports" / "0.html"
    folder.mkdir()
    _keep_report(folder, target)
    assert not target.parent.exists()
    (folder / REPORT).write_text("x")
    with caplog.at_level(logging.INFO):
        _keep_report(folder, target)
    assert target.read_text() == "x"
    assert str(target) in caplog.text
    assert not (folder / REPORT).exists()
    (folder / REPORT).write_text("y")
    _keep_report(folder, target / "no folder" / "0.html")
    assert not (folder / REPORT).exists()
    assert "the report of the quality cannot be written" in caplog.text
