"""The bodies of errors, by API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bei_core.errors import RequestError
from bei_core.http.json_schema import INTEGER, STRING, JsonSchema, nullable, object_of


class ErrorFormat(NamedTuple):
    """How an API writes an error."""

    name: str  # of its schema in the OpenAPI document
    schema: JsonSchema
    body: Callable[[RequestError, str, str | None], dict[str, Any]]  # from the error, its text, the field at fault


# OpenAI's own codes; its clients in typed languages refuse a code that is a number.
_CODES = {(401, None): "invalid_api_key", (404, "model"): "model_not_found", (429, None): "rate_limit_exceeded"}

# The kinds that text-embeddings-inference does not have, and what it calls them. Those of 401, 404, 405 and 504, for
# which its API has no body, stay as they are.
_KINDS_OF_TEI = {"PayloadTooLarge": "Validation", "WrongTask": "Backend"}


def kind_of_tei(error: RequestError) -> str:
    """The `error_type` of text-embeddings-inference for an error."""
    return _KINDS_OF_TEI.get(error.kind, error.kind)


def _of_tei(error: RequestError, message: str, _: str | None) -> dict[str, Any]:
    return {"error": message, "error_type": kind_of_tei(error)}


def _of_openai(error: RequestError, message: str, param: str | None) -> dict[str, Any]:
    """OpenAI's `error`, beside what Cohere's clients and the OpenAI routes of text-embeddings-inference have."""
    code = _CODES.get((error.status, param))
    known = {"message": message, "type": error.kind, "param": param, "code": code}
    return {"error": known, "message": message, "code": error.status, "error_type": kind_of_tei(error)}


TEI = ErrorFormat("Error", object_of(error=STRING, error_type=STRING), _of_tei)
OLLAMA = ErrorFormat("OllamaError", object_of(error=STRING), lambda _, message, __: {"error": message})
OPENAI = ErrorFormat(
    "OpenAIError",
    object_of(
        error=object_of(message=STRING, type=STRING, param=nullable(STRING), code=nullable(STRING)),
        message=STRING,
        code=INTEGER,
        error_type=STRING,
    ),
    _of_openai,
)
