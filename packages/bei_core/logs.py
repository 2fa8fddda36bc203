"""Log lines: plain for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import TextIO

# Libraries that log at least one line for each request, or the endpoint that they use.
TALKATIVE = ("httpx", "httpx2", "botocore", "aiobotocore", "azure", "google")

_own = logging.getLogger("bei_core")
_access = logging.getLogger("bei_core.access")


class BarAwareHandler(logging.StreamHandler[TextIO]):
    """Writes each line above the progress bars of tqdm, if there are any, so that lines and bars do not mix."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # if tqdm is not imported, there are no bars
        with nullcontext() if bars is None else bars.external_write_mode(file=self.stream):
            super().emit(record)


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a record's time, level, logger, message and traceback, and the fields of a request, as JSON."""
        fields: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= getattr(record, "bei_request", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)  # ASCII, and unlike orjson's also for text that is not valid Unicode


def configure_logging(*, json_output: bool, level: str = "info") -> None:
    """Writes the lines of all loggers from `level` on to standard error. All other handlers are removed."""
    logging.basicConfig(level=level.upper(), handlers=[_handler(json_output=json_output)], force=True)
    _access.setLevel(logging.INFO)  # only the setting `access_log` decides whether there are such lines
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def configure_own_logging(*, json_output: bool, level: str) -> None:
    """Sets up only BEI's own loggers, for a process whose logging another program has set up (Truss's server).

    Lines use the handlers and the format of that program, or with `json_output` those of `configure_logging`.
    """
    _own.setLevel(level.upper())
    _access.setLevel(logging.INFO)
    if json_output:
        _own.handlers, _own.propagate = [_handler(json_output=True)], False


def _handler(*, json_output: bool) -> logging.Handler:
    handler = BarAwareHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if json_output else plain)
    return handler


def log_access(
    *,
    method: str,
    path: str,
    status: int,
    request_id: str,
    model: str = "",
    num_inputs: int = 0,
    num_tokens: int = 0,
    tokenization_ms: float = 0.0,
    queue_ms: float = 0.0,
    inference_ms: float = 0.0,
    total_ms: float = 0.0,
) -> None:
    """Logs one finished request, as `POST /embed 200 request_id=... tokens=7 ...` or as fields of the JSON line.

    The caller checks `Settings.access_log`. Method, path and request id are the only texts from the client. They are
    quoted if their characters could look like another line or field.
    """
    fields = {
        "method": method,
        "path": path,
        "status": status,
        "request_id": request_id,
        "model": model,
        "inputs": num_inputs,
        "tokens": num_tokens,
        "tokenization_ms": round(tokenization_ms, 3),
        "queue_ms": round(queue_ms, 3),
        "inference_ms": round(inference_ms, 3),
        "total_ms": round(total_ms, 3),
    }
    named = [f"{name}={_quoted(value)}" for name, value in list(fields.items())[3:]]
    line = " ".join([_quoted(method), _quoted(path), str(status), *named])
    _access.info("%s", line, extra={"bei_request": fields})


def _quoted(value: object) -> str:
    """Returns a value for `name=value`: in JSON's quotes unless it is one printable ASCII word."""
    text = str(value)
    is_word = text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if is_word and text else json.dumps(text)
