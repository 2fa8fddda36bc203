"""Log lines, and the access log."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import select
import sys
from contextlib import suppress

import pytest

from bei_core.logs import BarAwareHandler, ModelLog, configure_logging, is_json_wanted, log_access


def access(path: str = "/embed", status: int = 200, request_id: str = "r-1") -> None:
    times = {"tokenization_ms": 0.1234, "queue_ms": 1.0, "inference_ms": 2.5, "total_ms": 4.25}
    fields = {"request_id": request_id, "model": "a/b", "inputs": 2, "tokens": 7, **times}
    log_access("POST", path, status, fields)


def test_an_access_line_has_everything_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json_output=False)
    access()
    line = capsys.readouterr().err
    assert line.endswith(
        " INFO bei_core.access: POST /embed 200 request_id=r-1 model=a/b inputs=2 tokens=7 "
        "tokenization_ms=0.123 queue_ms=1.0 inference_ms=2.5 total_ms=4.25\n"
    )


def test_in_json_each_part_is_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json_output=True)
    access()
    fields = json.loads(capsys.readouterr().err)
    assert fields["logger"] == "bei_core.access"
    assert fields["level"] == "INFO"
    names = ("method", "path", "status", "request_id", "model", "inputs", "tokens")
    assert [fields[name] for name in names] == ["POST", "/embed", 200, "r-1", "a/b", 2, 7]
    times = ("tokenization_ms", "queue_ms", "inference_ms", "total_ms")
    assert [fields[name] for name in times] == [0.123, 1.0, 2.5, 4.25]


def test_a_line_about_an_engine_names_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    log = ModelLog(logging.getLogger("bei_core.serving"), "100%s")
    configure_logging(json_output=False)
    log.error("the engine thread failed")
    log.warning("a batch of %d failed", 3, exc_info=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(" ERROR bei_core.serving: 100%s: the engine thread failed")
    assert lines[1].endswith(" WARNING bei_core.serving: 100%s: a batch of 3 failed")
    configure_logging(json_output=True)
    log.error("the engine thread failed")
    fields = json.loads(capsys.readouterr().err)
    assert (fields["model"], fields["message"]) == ("100%s", "100%s: the engine thread failed")


@pytest.mark.parametrize("json_output", [False, True])
def test_a_path_cannot_forge_a_line_or_a_field(capsys: pytest.CaptureFixture[str], json_output: bool) -> None:
    configure_logging(json_output=json_output)
    for path in ("/a\nb INFO x: y", "/a status=200", '/a"b', "/a\x1b[31m", "/\u2028x", "/caf\xe9", "/\ud800"):
        access(path=path, request_id="", status=404)
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        if json_output:
            assert json.loads(line)["status"] == 404
        else:
            assert line.isascii()
            assert "\x1b" not in line
            assert ' 404 request_id="" ' in line
            assert f'POST "{path[:2]}' in line or 'POST "/\\' in line


@pytest.mark.parametrize(
    ("words", "variable", "wanted"),
    [
        ("", "", False),
        ("serve", "", False),
        ("serve", "True", True),
        ("serve", "0", False),
        ("serve --json-output", "", True),
        ("serve --json-output --port 80", "false", True),
        ("serve --json-output=true", "", True),
        ("serve --json-output TRUE", "", True),
        ("serve --json-output false", "", False),
        ("serve --json-output=False", "true", False),
        ("serve --no-json-output", "true", False),
        ("serve --json-output --no-json-output", "", False),
        ("serve --no-json-output --json-output", "", True),
        ("embed -- --json-output", "", False),
    ],
)
def test_before_the_settings_are_read_flags_and_variables_are_read_alike(
    words: str, variable: str, wanted: bool
) -> None:
    for name in ("BEI_JSON_OUTPUT", "JSON_OUTPUT"):
        assert is_json_wanted(words.split(), {name: variable}) is wanted


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")],
)
def test_the_level_is_that_of_every_logger_but_of_the_access_log(
    capsys: pytest.CaptureFixture[str], level: str, shown: str
) -> None:
    configure_logging(json_output=False, level=level)
    log = logging.getLogger("bei_core.example")
    for letter, number in (("d", logging.DEBUG), ("i", logging.INFO), ("w", logging.WARNING), ("e", logging.ERROR)):
        log.log(number, letter)
    logging.getLogger("httpx").info("a line a request")
    assert "".join(line[-1] for line in capsys.readouterr().err.splitlines()) == shown
    access()
    assert "POST /embed" in capsys.readouterr().err


def test_a_line_is_written_above_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    configure_logging(json_output=False)
    with tqdm(total=2, desc="fetching", file=sys.stderr) as bar:
        bar.update()
        logging.getLogger("bei_core").info("a line")
    written = capsys.readouterr().err
    assert re.search(r"\r +\r[^\r\n]*: a line\n\rfetching", written), (
        "the bar is cleared, and drawn again below the line"
    )


def test_lines_that_nobody_reads_are_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe takes no line; none of them blocks, and the next reader is told how many are missing."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb") as read, open(writer, "w") as stream:
        log, handler, letters = logging.getLogger("bei_core"), BarAwareHandler(stream), "a" * 3000
        monkeypatch.setattr(log, "handlers", [handler])
        for number in range(100):  # a pipe has at most 64 kB
            log.warning("%d %s", number, letters)
        before = read.read().decode().splitlines()
        for number in range(100, 102):
            log.warning("%d %s", number, letters)
        after = [line for line in read.read().decode().splitlines() if line]
    whole = [line for line in before if line.endswith(letters)]
    assert [int(line.split()[0]) for line in whole] == list(range(len(whole)))
    assert len(before) - len(whole) <= 1  # the last one may be cut
    assert after[0] == f"lost {100 - len(whole)} lines of the log, because standard error was not read"
    assert after[1:] == [f"{number} {letters}" for number in range(100, 102)]


@pytest.mark.parametrize("letters", ["a" * 4000, "é" * 2000])
def test_a_line_that_a_pipe_takes_at_once_is_one_write(letters: str) -> None:
    """Between parts of a line there could be a line of another process, such as that of the engine."""

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    written = list[str]()
    BarAwareHandler(Stream()).emit(logging.makeLogRecord({"msg": letters}))
    assert written == [f"{letters}\n"]


@pytest.mark.parametrize("letters", ["a" * 4000, "é" * 2000, "\ud800" * 1000, "\U0001f600" * 1000])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_write_has_more_bytes_than_a_full_pipe_takes(letters: str, encoding: str) -> None:
    """Standard error escapes what it cannot encode; one character can be ten bytes."""

    class Stream(io.TextIOWrapper):
        def write(self, text: str) -> int:
            sizes.append(len(text.encode(encoding, "backslashreplace")))
            return super().write(text)

    sizes, written = list[int](), io.BytesIO()
    stream = Stream(written, encoding=encoding, errors="backslashreplace")
    BarAwareHandler(stream).emit(logging.makeLogRecord({"msg": letters}))
    assert written.getvalue() == f"{letters}\n".encode(encoding, "backslashreplace")
    assert max(sizes) <= select.PIPE_BUF


def test_a_line_longer_than_a_pipe_takes_does_not_block() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "w") as stream, suppress(BrokenPipeError):
        BarAwareHandler(stream).emit(logging.makeLogRecord({"msg": "é" * 2_000_000}))
