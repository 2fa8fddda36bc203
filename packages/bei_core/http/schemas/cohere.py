"""Cohere's API for embeddings: `/v1/embed` and `/v2/embed`, as its clients of version 5 and later send them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import NUMBER, OBJECT, STRING, any_of, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import Common, RequestContext
from bei_core.http.schemas.vectors import as_base64, as_lists, prompt_name
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Embed, Rows, Text, check_dimensions

EmbeddingType: TypeAlias = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class Content(msgspec.Struct):
    """A part of an input; parts other than texts are refused."""

    type: str = "text"
    text: str | None = None


class MixedInput(msgspec.Struct):
    """An input of v2, which may hold texts and images at Cohere."""

    content: list[Content]

    @property
    def text(self) -> str:
        """The text of the input. Raises ValidationError for images and for several texts."""
        texts = [part.text for part in self.content if part.type == "text" and part.text is not None]
        if len(texts) != 1 or len(self.content) != 1:
            raise ValidationError("`content` must hold one text; images are not supported", param="content")
        return texts[0]


class CohereEmbedRequest(Common, kw_only=True):
    """`POST /v1/embed`."""

    kinds = (Kind.EMBEDDING,)

    texts: list[str] | None = None
    images: list[Any] | None = None  # refused
    inputs: list[MixedInput] | None = None  # v2 only
    input_type: str | None = None  # chooses one of the model's prompts
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: int | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # of an input, special ones included

    @property
    def inputs_as_texts(self) -> list[str]:
        """The texts to embed. Raises ValidationError for images, or unless exactly one of the two fields is set."""
        if self.images or self.input_type == "image":
            field = "images" if self.images else "input_type"
            raise ValidationError(f"`{field}` is given: images are not supported; send `texts`", param=field)
        if (self.texts is None) == (self.inputs is None):
            raise ValidationError("give either `texts` or `inputs`", param="texts")
        return self.texts if self.texts is not None else [item.text for item in self.inputs or ()]

    def to_task(self, model: ServedModel) -> Embed:
        """Returns the task."""
        texts: Sequence[Text] = self.inputs_as_texts
        name = prompt_name(self.input_type, model) if self.input_type else None
        options = replace(self.encode_options(model, prompt_name=name), max_tokens=self.max_tokens)
        if self.output_dimension is not None:
            check_dimensions(self.output_dimension, model.row_width, "output_dimension")  # before any work
        return Embed(texts, options, dimensions=self.output_dimension)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """Returns the vectors as lists of numbers or, with `embedding_types`, as an object with each type."""
        if self.embedding_types:
            return self._by_type(result, context, self.embedding_types, "1")
        reply = self._reply(result, context, "1")
        return {"response_type": "embeddings_floats", "embeddings": as_lists(result.rows, "float"), **reply}

    def _by_type(
        self, result: Result[Rows], context: RequestContext, types: Sequence[EmbeddingType], version: str
    ) -> dict[str, Any]:
        """Returns the reply with the vectors in each of `types`."""
        vectors = {name: as_base64(result.rows) if name == "base64" else as_lists(result.rows, name) for name in types}
        reply = self._reply(result, context, version)
        return {"response_type": "embeddings_by_type", "embeddings": vectors, **reply}

    def _reply(self, result: Result[Rows], context: RequestContext, version: str) -> dict[str, Any]:
        """Returns the fields of a reply except the vectors."""
        tokens = {"input_tokens": result.timings.num_tokens}
        meta = {"api_version": {"version": version}, "billed_units": tokens}
        return {"id": context.request_id, "texts": self.inputs_as_texts, "meta": meta}


class CohereEmbedV2Request(CohereEmbedRequest, kw_only=True):
    """`POST /v2/embed`: the vectors are always by type."""

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """Returns an object with the vectors in each requested type; f32 by default."""
        return self._by_type(result, context, self.embedding_types or ["float"], "2")


_VECTORS = array_of(array_of(NUMBER))
_TYPES = dict.fromkeys(("float", "int8", "uint8", "binary", "ubinary"), _VECTORS) | {"base64": array_of(STRING)}
_BY_TYPE = object_of(tuple(_TYPES), **_TYPES)
_FIELDS = {"id": STRING, "texts": array_of(STRING), "meta": OBJECT, "response_type": STRING}

ROUTES = (
    Route(
        "POST",
        "/v1/embed",
        "Cohere: `texts`, `input_type`, `embedding_types`, `truncate`",
        CohereEmbedRequest,
        example={"texts": ["a tree grows"], "input_type": "search_document"},
        reply=object_of(embeddings=any_of(_VECTORS, _BY_TYPE), **_FIELDS),
        errors=OPENAI,
        inputs="texts",
    ),
    Route(
        "POST",
        "/v2/embed",
        "Cohere: the same, and `inputs`, `output_dimension`, `max_tokens`",
        CohereEmbedV2Request,
        example={"texts": ["a tree grows"], "input_type": "search_document", "embedding_types": ["float"]},
        reply=object_of(embeddings=_BY_TYPE, **_FIELDS),
        errors=OPENAI,
        inputs="texts",
        other_inputs=("inputs",),
    ),
)
