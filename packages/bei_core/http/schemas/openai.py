"""OpenAI's API: `/v1/embeddings`."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np

from bei_core.errors import ValidationError
from bei_core.http.schemas.common import Common, Input, RequestContext, inputs_of, usage
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Embed, Rows, check_dimensions

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
