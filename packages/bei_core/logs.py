"""Log lines: plain for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import math
import select
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import Any, TextIO

# Libraries that log at least one line for each request, or the endpoint that they use.
TALKATIVE = ("httpx", "httpx2", "botocore", "aiobotocore", "azure", "google")

# A full pipe takes PIPE_BUF bytes at once as soon as it takes anything; a character has up to ten, where standard error
# escapes it (\U0001f600). A line of so many bytes is one write, so that lines of other processes that share the pipe do
# not come between its parts.
_PART_CHARS = select.PIPE_BUF // 10

# How long a line waits for the reader of standard error, at most, in seconds, and the share of the time for all waits.
_WAIT_S, _WAIT_SHARE = 0.2, 0.02

log = logging.getLogger(__name__)
_own = logging.getLogger("bei_core")
_access = logging.getLogger("bei_core.access")


class BarAwareHandler(logging.StreamHandler):  # type: ignore[type-arg]  # not generic in Python 3.10
    """Writes each line above the progress bars that tqdm draws, if there are any, so that no bar is broken.

    A line that is not read is lost: to wait for the reader of a full pipe would stop the server. A later line says how
    many were lost.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._num_lost = 0  # lines since one was written
        self._unfinished = ""  # the end of a line that was written in part
        self._waits_from = -math.inf  # seconds on time.monotonic's clock; until then no line waits

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # not imported: no bars
        try:
            with nullcontext() if bars is None else bars.external_write_mode(file=self.stream):
                if self._num_lost and self._is_read():
                    num_lost, self._num_lost = self._num_lost, 0
                    level = max(logging.WARNING, log.getEffectiveLevel())
                    log.log(level, "lost %d lines of the log, because standard error was not read", num_lost)
                self._write(self.format(record))
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> None:
        """Write a line in parts, each of which a full pipe takes at once if it takes anything."""
        line = self._unfinished + line + self.terminator
        size = len(line) if self._num_bytes(line) <= select.PIPE_BUF else _PART_CHARS
        for start in range(0, len(line), size):
            if not self._is_read():
                self._num_lost += 1
                self._unfinished = self.terminator if start else self._unfinished
                return
            self.stream.write(line[start : start + size])
            self.flush()
        self._unfinished = ""

    def _num_bytes(self, line: str) -> int:
        """The bytes of a line as the stream encodes it; in UTF-8 if the stream does not say how."""
        encoding, errors = getattr(self.stream, "encoding", None), getattr(self.stream, "errors", None)
        return len(line.encode(encoding, errors) if encoding and errors else line.encode(errors="surrogatepass"))

    def _is_read(self) -> bool:
        """Whether the stream takes a part of a line, now or after a wait; all waits take at most 2% of the time."""
        try:
            if select.select((), (self.stream,), (), 0)[1]:
                return True
            since = time.monotonic()
            if since < self._waits_from:
                return False
            found = bool(select.select((), (self.stream,), (), _WAIT_S)[1])
            now = time.monotonic()
            self._waits_from = now + (now - since) / _WAIT_SHARE
            return found
        except (TypeError, ValueError, OSError):  # not a file, or a closed one
            return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, logger, message and traceback, the model of a ModelLog, a request's fields."""
        fields: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= getattr(record, "bei_fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)  # ASCII, and unlike orjson's also for text that is not valid Unicode


class ModelLog(logging.LoggerAdapter):  # type: ignore[type-arg]  # not generic in Python 3.10
    """Begins each line with the name of a model, because several models of a server log the same lines."""

    def __init__(self, logger: logging.Logger, model: str) -> None:
        super().__init__(logger, {"bei_fields": {"model": model}})
        self._model = model

    def log(self, level: int, msg: object, *args: object, **given: Any) -> None:  # noqa: ANN401 - as in the base class
        """Log a line; every other method calls this one."""
        super().log(level, f"%s: {msg}", self._model, *args, **given)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401
        """The message, and its arguments with the model as a field of a JSON line."""
        return msg, {**kwargs, "extra": self.extra}


def configure_logging(*, json_output: bool, level: str = "info") -> None:
    """Write the lines of all loggers to standard error, from `level` on, in place of every other handler."""
    logging.basicConfig(level=level.upper(), handlers=[_handler(json_output=json_output)], force=True)
    _access.setLevel(logging.INFO)  # `access_log` alone decides whether there are such lines
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def is_set_up() -> bool:
    """Whether `configure_logging` was called."""
    return any(isinstance(handler, BarAwareHandler) for handler in logging.getLogger().handlers)


def is_json() -> bool:
    """Whether the log was set up to write JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def is_json_wanted(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command line or the environment asks for JSON; for lines that are written before settings are read.

    As in `cli/flags`, a flag may have a value (`--json-output false`), the last flag counts, and it counts more than a
    variable.
    """
    variable = environ.get("BEI_JSON_OUTPUT") or environ.get("JSON_OUTPUT") or ""
    wanted = variable.lower() in {"true", "1"}
    for word, after in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--":
            break
        if flag in {"--json-output", "--no-json-output"}:
            wanted = flag == "--json-output" and (value if equals else after).lower() != "false"
    return wanted


def configure_own_logging(*, json_output: bool, level: str) -> None:
    """Set up BEI's own loggers in a process whose logging another program has set up (Truss's server).

    Lines have that program's handlers and format, or with `json_output` those of `configure_logging`.
    """
    _own.setLevel(level.upper())
    _access.setLevel(logging.INFO)
    if json_output:
        _own.handlers, _own.propagate = [_handler(json_output=True)], False


def configure_worker_logging(*, json_output: bool, level: str) -> None:
    """Set up logging in a worker of Ray: as the worker's own handlers do it if it has some, else on standard error."""
    configure = configure_own_logging if logging.getLogger().handlers else configure_logging
    configure(json_output=json_output, level=level)


def _handler(*, json_output: bool) -> logging.Handler:
    handler = BarAwareHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if json_output else plain)
    return handler


def log_access(method: str, path: str, status: int, fields: Mapping[str, object]) -> None:
    """Log one finished request, as `POST /embed 200 request_id=... tokens=7 ...` or as fields of the JSON line.

    `fields` has the others by their names in the line; numbers are rounded to 3 digits after the point. The caller
    checks `Settings.access_log`. Of what a client sent, the line has only method, path and request id. They are quoted
    if they have characters that could look like another line or field.
    """
    others = {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}
    named = (f"{name}={_quoted(value)}" for name, value in others.items())
    line = " ".join([_quoted(method), _quoted(path), str(status), *named])
    _access.info("%s", line, extra={"bei_fields": {"method": method, "path": path, "status": status, **others}})


def _quoted(value: object) -> str:
    """A value for `name=value`: in JSON's quotes unless it is one printable ASCII word."""
    text = str(value)
    is_word = text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if is_word and text else json.dumps(text)
