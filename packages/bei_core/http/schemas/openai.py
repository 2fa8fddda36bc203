"""OpenAI's API: `/v1/embeddings`, `/v1/models`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import INTEGER, NUMBER, OBJECT, STRING, any_of, array_of, object_of
from bei_core.http.naming import INPUT_TYPES
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import USAGE, Common, Input, RequestContext, inputs_of, usage
from bei_core.http.schemas.embedding_options import EmbeddingOptions
from bei_core.http.schemas.late_chunking import late_rows, late_task
from bei_core.http.schemas.vectors import as_base64
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result, Service
from bei_core.tasks import Embed, EmbedAll, Rows, check_dimensions

_STARTED = int(time.time())


class EmbeddingsRequest(EmbeddingOptions, kw_only=True):
    """`POST /v1/embeddings`, in the forms of OpenAI and of the other APIs with this path."""

    input: Input
    model: str | None = None
    user: str | None = None

    def to_task(self, model: ServedModel) -> Embed | EmbedAll:
        """Returns the task."""
        inputs = inputs_of(self.input)
        if self.is_plain:
            is_typed = self.input_type or (self.model or "").endswith(INPUT_TYPES)
            name = self.prompt_of_type(model) if is_typed else None
            options = Common.encode_options(self, model, prompt_name=name)  # no option of `VllmEncoding` is given
            dimensions, normalize = self.dimensions or None, True
        else:
            options, dimensions, normalize = self.all_options(model), self.width, self.has_unit_length
        if dimensions is not None:
            check_dimensions(
                dimensions, model.row_width, "dimensions" if self.dimensions else "output_dimension"
            )  # before any work
        if self.late_chunking:
            return late_task(inputs, options, model)
        return Embed(inputs, options, normalize, dimensions)

    def to_reply(self, result: Result[Any], context: RequestContext) -> dict[str, Any]:
        """Returns a list object with an embedding per input: floats, base64 of little-endian f32, or another format."""
        rows: Sequence[Any]
        vectors: Rows = self._late(result) if self.late_chunking else result.rows
        if not self.is_plain:
            rows = self.written(vectors)
        elif self.encoding_format == "base64":
            rows = as_base64(vectors)
        else:
            rows = list(np.ascontiguousarray(vectors))
        reply = {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": self.model if self.model and self.model != "not-required" else context.model.name,
            "usage": usage(result.timings),
        }
        if self.normalized is None:
            return reply
        facts = {"encoding_format": self.encoding_format or "float", "dimensions": vectors.shape[1]}
        return {**reply, "normalized": self.normalized, **facts}  # fields of mixedbread's reply

    def _late(self, result: Result[Any]) -> Rows:
        """Returns f32[N, D]: the vectors of `late_chunking`."""
        texts = [text for text in inputs_of(self.input) if isinstance(text, str)]
        return Embed(texts, normalize=self.has_unit_length, dimensions=self.width).finish(late_rows(result, texts))


async def models(call: Call) -> dict[str, Any]:
    """Answers `GET /v1/models` with the served models."""
    return {"object": "list", "data": [_model(service) for service in call.names.services]}


async def model(call: Call) -> dict[str, Any]:
    """Answers `GET /v1/models/{id}`. Raises NotFoundError for a model that is not served."""
    return _model(call.names.find(call.path.partition("/models/")[2]))


def _model(service: Service) -> dict[str, Any]:
    # Infinity's client accepts no other owner and requires `stats`; OpenAI's client accepts any.
    return {"id": service.name, "object": "model", "created": _STARTED, "owned_by": "infinity", "stats": {}}


_EMBEDDING = object_of(object=STRING, index=INTEGER, embedding=any_of(array_of(NUMBER), STRING, OBJECT))
_MODEL = object_of(id=STRING, object=STRING, created=INTEGER, owned_by=STRING)

ROUTES = (
    Route(
        "POST",
        "/v1/embeddings",
        "OpenAI: a text, texts or token ids; `dimensions`, `encoding_format`; `input_type` chooses one of the model's "
        "prompts; [the options of Voyage, Jina, mixedbread, NVIDIA and vLLM](#options-of-other-apis) too",
        EmbeddingsRequest,
        example={"input": ["what grows", "a tree grows"]},
        reply=object_of(object=STRING, data=array_of(_EMBEDDING), model=STRING, usage=USAGE),
        errors=OPENAI,
        inputs="input",
        aliases=("/embeddings",),
        by_fields=True,
        default_for=EmbeddingsRequest.kinds,
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
    Route(
        "GET",
        "/v1/models/{id}",
        "whether a model is served, by the names that `model` takes",
        answer=model,
        reply=_MODEL,
        errors=OPENAI,
        aliases=("/models/{id}",),
    ),
)
