"""OpenAI's API: `/v1/embeddings`, `/v1/models`."""

from __future__ import annotations

import base64
import time
from typing import Any, Literal

import numpy as np

from bei_core.errors import ValidationError
from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import INTEGER, NUMBER, STRING, any_of, array_of, object_of
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import USAGE, Common, Input, RequestContext, inputs_of, usage
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Embed, Rows, check_dimensions

_STARTED = int(time.time())

# The prompts that sentence-transformers models have for an input type, in order of preference.
_QUERY = ("query", "search_query")
_DOCUMENT = ("document", "passage", "search_document")
_PROMPTS = dict.fromkeys(_QUERY, _QUERY) | dict.fromkeys(_DOCUMENT, _DOCUMENT)


class EmbeddingsRequest(Common, kw_only=True):
    """`POST /v1/embeddings`; `input_type` chooses one of the model's own prompts."""

    kinds = (Kind.EMBEDDING,)

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None  # some clients send null: float
    dimensions: int | None = None  # Infinity's client sends 0 by default: the model's own
    user: str | None = None
    input_type: str | None = None

    def to_task(self, model: ServedModel) -> Embed:
        """The task."""
        prompt_name = _prompt_name(self.input_type, model) if self.input_type else None
        options = self.encode_options(model, prompt_name=prompt_name)
        inputs = inputs_of(self.input, "input")
        if self.dimensions:
            check_dimensions(self.dimensions, model.row_width)  # before any work
        return Embed(inputs, options, normalize=True, dimensions=self.dimensions or None)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """A list object with an embedding per input: floats, or base64 of little-endian f32."""
        rows: list[Any]
        if self.encoding_format == "base64":
            rows = [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii") for row in result.rows]
        else:
            rows = list(np.ascontiguousarray(result.rows))
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": self.model if self.model and self.model != "not-required" else context.model.name,
            "usage": usage(result.timings),
        }


async def models(call: Call) -> dict[str, Any]:
    """`GET /v1/models`."""
    # Infinity's client accepts no other owner and requires `stats`; OpenAI's client accepts any.
    facts = {"object": "model", "created": _STARTED, "owned_by": "infinity", "stats": {}}
    return {"object": "list", "data": [{"id": service.name, **facts} for service in call.services]}


def _prompt_name(input_type: str, model: ServedModel) -> str | None:
    """The name of the model's prompt for an input type; None if the model was trained without.

    Raises ValidationError if the type is neither a usual one nor a prompt of the model.
    """
    for name in _PROMPTS.get(input_type, (input_type,)):
        if name in model.prompts:
            return name
    if input_type in _PROMPTS:
        return None
    known = sorted({"query", "passage", "document", *model.prompts})
    raise ValidationError(f"unknown `input_type` {input_type!r}; known are {', '.join(known)}", param="input_type")


_EMBEDDING = object_of(object=STRING, index=INTEGER, embedding=any_of(array_of(NUMBER), STRING))
_MODEL = object_of(id=STRING, object=STRING, created=INTEGER, owned_by=STRING)

ROUTES = (
    Route(
        "POST",
        "/v1/embeddings",
        "OpenAI: a text, texts or token ids; `dimensions`, `encoding_format`; `input_type` chooses one of the model's "
        "prompts",
        EmbeddingsRequest,
        reply=object_of(object=STRING, data=array_of(_EMBEDDING), model=STRING, usage=USAGE),
        errors=OPENAI,
        inputs="input",
        aliases=("/embeddings",),
        by_shape=True,
        default_for=(Kind.EMBEDDING,),
    ),
    Route(
        "GET",
        "/v1/models",
        "what is served",
        answer=models,
        reply=object_of(object=STRING, data=array_of(_MODEL)),
        errors=OPENAI,
        aliases=("/models",),
    ),
)
