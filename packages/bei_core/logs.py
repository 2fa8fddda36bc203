"""Log lines: plain for people, JSON for machines."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone

import orjson

# Libraries that write a line or more a request, or where they found their endpoint.
_TALKATIVE = ("httpx", "httpx2", "botocore", "aiobotocore", "azure", "google")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, logger, text and traceback."""
        fields = {
            "timestamp": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()


def configure_logging(*, json_output: bool, level: int = logging.INFO) -> None:
    """Sends every logger to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if json_output else plain)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
