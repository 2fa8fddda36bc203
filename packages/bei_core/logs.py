"""Log lines: plain for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

# Libraries that write a line or more for each request, or where they found their endpoint.
TALKATIVE = ("httpx", "httpx2", "botocore", "aiobotocore", "azure", "google")

_access = logging.getLogger("bei_core.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, text and traceback of a record; of a request also its fields."""
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
    """Sends the lines of every logger, from a level on, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if json_output else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    _access.setLevel(logging.INFO)  # who asks for an access log wants it at any level
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


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

    The caller asks `Settings.access_log` first. Nothing that a client sent but its path and its id is in the line, and
    both are quoted where they have characters that could pass for another line or field.
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
    """A value for a line of `name=value`: in JSON's quotes unless it is one printable ASCII word."""
    text = str(value)
    is_word = text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if is_word and text else json.dumps(text)
