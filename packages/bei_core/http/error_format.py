"""The formats of error replies, one for each API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bei_core.errors import RequestError
from bei_core.http.json_schema import INTEGER, STRING, JsonSchema, nullable, object_of


class ErrorFormat(NamedTuple):
    """The format in which an API reports an error."""

    name: str  # the name of the schema in the OpenAPI document
    schema: JsonSchema
    body: Callable[[RequestError, str, str | None], dict[str, Any]]  # of error, message, wrong field's name


# OpenAI's `code` strings by (status, param). OpenAI clients in typed languages reject a number here.
_CODES = {(401, None): "invalid_api_key", (404, "model"): "model_not_found", (429, None): "rate_limit_exceeded"}

# Our error kinds that text-embeddings-inference does not have, with its name for each. The kinds of 401, 404, 405 and
# 504 keep our names, because its API defines no body for these statuses.
_KINDS_OF_TEI = {"PayloadTooLarge": "Validation", "WrongTask": "Backend"}


def kind_of_tei(error: RequestError) -> str:
    """Returns the `error_type` that text-embeddings-inference uses for an error."""
    return _KINDS_OF_TEI.get(error.kind, error.kind)


def _of_tei(error: RequestError, message: str, _: str | None) -> dict[str, Any]:
    return {"error": message, "error_type": kind_of_tei(error)}


def _of_openai(error: RequestError, message: str, param: str | None) -> dict[str, Any]:
    """Returns OpenAI's `error` object, and at the top level the fields that Cohere's and TEI's clients read."""
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
