"""The bodies of errors, by API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bei_core.errors import RequestError
from bei_core.http.json_schema import STRING, JsonSchema, nullable, object_of


class ErrorFormat(NamedTuple):
    """How an API writes an error."""

    name: str  # of its schema in the OpenAPI document
    schema: JsonSchema
    body: Callable[[RequestError, str, str | None], dict[str, Any]]  # from the error, its text, the field at fault


# OpenAI's own codes; its clients in typed languages refuse a code that is a number.
_CODES = {(401, None): "invalid_api_key", (404, "model"): "model_not_found", (429, None): "rate_limit_exceeded"}

TEI = ErrorFormat(
    "Error",
    object_of(error=STRING, error_type=STRING),
    lambda error, message, _: {"error": message, "error_type": error.kind},
)
OLLAMA = ErrorFormat("OllamaError", object_of(error=STRING), lambda _, message, __: {"error": message})
OPENAI = ErrorFormat(
    "OpenAIError",
    object_of(error=object_of(message=STRING, type=STRING, param=nullable(STRING), code=nullable(STRING))),
    lambda error, message, param: {
        "error": {"message": message, "type": error.kind, "param": param, "code": _CODES.get((error.status, param))}
    },
)
