"""What `bei embed`, `bei rerank` and `bei classify` print of a model, in each format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from bei_core.cli import main as cli
from bei_core.errors import BeiError, ConfigError, WrongTaskError
from bei_core.models.modules import Classifier, Module
from tests.fakes import WIDTH
from tests.unit.cli.fake_model import opens

RANKER = Classifier(("LABEL_0",), "sigmoid")
LABELS = tuple(f"L{index}" for index in range(WIDTH))


def run(*words: str, text: str = "") -> Result:
    return CliRunner().invoke(cli.app, [*words, "--model-id", "owner/name"], input=text, env={"BEI_MODELS": ""})


def lines(result: Result) -> list[str]:
    """What is printed, without the log."""
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_embed_writes_a_line_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch)
    rows = np.array([json.loads(line) for line in lines(run("embed", "one", "two"))])
    assert rows.shape == (2, WIDTH)


def test_the_log_of_a_command_that_serves_nothing_says_nothing_of_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch)
    log = run("embed", "one").stderr
    assert "warmed up owner/name" in log
    assert not [line for line in log.splitlines() if "serve" in line.partition(": ")[2]]


def test_more_texts_than_one_request_has_are_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch)
    file = tmp_path / "texts"
    file.write_text("one\ntwo\nthree\n")
    alone = lines(run("embed", "one", "two", "three"))
    assert lines(run("embed", "--input", str(file), "--max-client-batch-size", "2")) == alone


def test_lines_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch)
    assert lines(run("embed", "-", text="one\r\ntwo\n")) == lines(run("embed", "one", "two"))


def test_a_table_has_the_first_numbers_of_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch)
    head, row = lines(run("embed", "one", "--format", "table"))
    assert head.split() == ["text", "embedding"]
    assert row.startswith("one ")
    assert row.endswith(f"… {WIDTH} numbers]")


def test_parquet_has_the_same_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch)
    file = tmp_path / "rows.parquet"
    assert lines(run("embed", "one", "two", "--format", "parquet", "--output", str(file))) == []
    table = pyarrow.parquet.read_table(file)
    assert table.column("text").to_pylist() == ["one", "two"]
    assert [json.dumps(row) for row in table.column("embedding").to_pylist()] == lines(run("embed", "one", "two"))


def test_rerank_writes_the_best_first(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch, RANKER)
    ranks = [json.loads(line) for line in lines(run("rerank", "query", "one", "two", "three"))]
    assert [rank["score"] for rank in ranks] == sorted((rank["score"] for rank in ranks), reverse=True)
    assert {rank["text"]: rank["index"] for rank in ranks} == {"one": 0, "two": 1, "three": 2}
    assert [json.loads(line) for line in lines(run("rerank", "query", "one", "two", "three", "--top-n", "1"))] == ranks[
        :1
    ]


def test_classify_writes_every_label(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(monkeypatch, Classifier(LABELS, "softmax"))
    rows = [json.loads(line) for line in lines(run("classify", "one", "two"))]
    assert [row["text"] for row in rows] == ["one"] * WIDTH + ["two"] * WIDTH
    assert {row["label"] for row in rows[:WIDTH]} == set(LABELS)
    assert sum(row["score"] for row in rows[:WIDTH]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "modules", "needed"),
    [
        (("embed", "one"), (RANKER,), "embedding"),
        (("rerank", "q", "one"), (), "reranker"),
        (("classify", "one"), (RANKER,), "classifier or token-classifier"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], modules: tuple[Module, ...], needed: str
) -> None:
    opens(monkeypatch, *modules)
    result = run(*words)
    assert isinstance(result.exception, WrongTaskError)
    assert str(result.exception).endswith(f"; this needs one of kind {needed}")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("embed",), "no text is given"),
        (("embed", "one", "--input", __file__), "one of the two"),
        (("embed", "one", "--format", "parquet"), "needs --output FILE"),
        (("embed", "one", "caf\udce9"), "text 2 is not UTF-8"),
        (("classify", "one", ""), "text 2 is empty"),
        (("rerank", "q", "one", "two", "--max-client-batch-size", "1"), "batch size 2 > maximum allowed batch size 1"),
    ],
)
def test_an_impossible_request_is_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    opens(monkeypatch, *((RANKER,) if words[0] == "rerank" else ()))
    result = run(*words)
    assert isinstance(result.exception, BeiError)
    assert said in str(result.exception)


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    result = run("embed", "one", "--format", "parquet", "--output", str(tmp_path / "rows"))
    assert isinstance(result.exception, ConfigError)
    assert "pip install 'bei-core[parquet]'" in str(result.exception)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"one\ncaf\xe9\n", "line 2 of {} is not UTF-8"),
        (b"one\n\ntwo\n", "line 2 of {} is empty; leave it out"),
        (b"", "no text is given"),
    ],
)
def test_a_line_that_is_no_text_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, said: str
) -> None:
    opens(monkeypatch)
    file = tmp_path / "texts"
    file.write_bytes(content)
    with file.open("rb") as stdin:
        piped = CliRunner().invoke(cli.app, ["embed", "-", "--model-id", "owner/name"], input=stdin)
    for result, name in ((run("embed", "--input", str(file)), str(file)), (piped, "standard input")):
        assert isinstance(result.exception, ConfigError)
        assert said.format(name) in str(result.exception)


def test_a_byte_order_mark_is_skipped_and_only_line_ends_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opens(monkeypatch)
    file = tmp_path / "texts"
    file.write_bytes("\ufeffone\u2028more\r\ntwo".encode())
    rows = [json.loads(line) for line in lines(run("embed", "--input", str(file)))]
    assert rows == [json.loads(line) for line in lines(run("embed", "one\u2028more", "two"))]


@pytest.mark.parametrize("words", [("embed", "one"), ("rerank", "q", "one"), ("classify", "one")])
@pytest.mark.parametrize("shape", [("--format", "parquet"), ("--output", "/no/such/folder/rows"), ("--output", "/")])
def test_answers_that_cannot_be_written_are_refused_before_the_model_is_opened(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], shape: tuple[str, ...]
) -> None:
    monkeypatch.setattr("bei_core.serving.service.open_engine", lambda settings: pytest.fail("it was opened"))
    assert run(*words, *shape).exit_code in {1, 2}
