"""The API of text-embeddings-inference: `/embed` and its variants, `/similarity`, `/tokenize`, `/decode`."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from bei_core.errors import EmptyInputError, ValidationError, WrongTaskError
from bei_core.http.schemas.common import Common, Input, Named, RequestContext, inputs_of
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Embed, EmbedAll, EmbedSparse, Rows, Sparse, Text, TokenRows, check_dimensions


class EmbedRequest(Common):
    """`POST /embed`."""

    kinds = (Kind.EMBEDDING,)

    inputs: Input
    normalize: bool = True
    dimensions: int | None = None

    def to_task(self, model: ServedModel) -> Embed:
        """The task."""
        inputs, options = inputs_of(self.inputs, "inputs"), self.encode_options(model)
        if self.dimensions is not None:
            check_dimensions(self.dimensions, model.row_width)  # before any work
        return Embed(inputs, options, self.normalize, self.dimensions)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> Rows:
        """A list of vectors."""
        return np.ascontiguousarray(result.rows)


class EmbedAllRequest(Common):
    """`POST /embed_all`."""

    kinds = (Kind.EMBEDDING, Kind.LATE_INTERACTION)

    inputs: Input

    def to_task(self, model: ServedModel) -> EmbedAll:
        """The task."""
        if not model.token_width:
            raise WrongTaskError(f"{model.name} gives no vectors of tokens")
        return EmbedAll(inputs_of(self.inputs, "inputs"), self.encode_options(model))

    def to_reply(self, result: Result[list[TokenRows]], context: RequestContext) -> list[TokenRows]:
        """A list of vectors per text."""
        return [np.ascontiguousarray(rows) for rows in result.rows]


class EmbedSparseRequest(Common):
    """`POST /embed_sparse`."""

    kinds = (Kind.SPARSE,)

    inputs: Input

    def to_task(self, model: ServedModel) -> EmbedSparse:
        """The task."""
        return EmbedSparse(inputs_of(self.inputs, "inputs"), self.encode_options(model))

    def to_reply(self, result: Result[list[Sparse]], context: RequestContext) -> list[list[dict[str, Any]]]:
        """`[[{index, value}]]`, by index."""
        return [
            [{"index": index, "value": value} for index, value in zip(row.indices.tolist(), row.values, strict=True)]
            for row in result.rows
        ]


class Sentences(msgspec.Struct):
    """One sentence and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Named, kw_only=True):
    """`POST /similarity`; `parameters` are the options of encoding."""

    kinds = (Kind.EMBEDDING,)

    inputs: Sentences
    parameters: Common | None = None

    def to_task(self, model: ServedModel) -> Embed:
        """The task."""
        if not self.inputs.sentences:
            raise EmptyInputError("`inputs.sentences` cannot be empty", param="inputs")
        texts: list[Text] = [self.inputs.source_sentence, *self.inputs.sentences]
        return Embed(texts, (self.parameters or Common()).encode_options(model))

    def to_reply(self, result: Result[Rows], context: RequestContext) -> Rows:
        """Cosine similarities of the one sentence to the others."""
        similarities: Rows = result.rows[1:] @ result.rows[0]
        return similarities


class TokenizeRequest(Named, kw_only=True):
    """`POST /tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(Named, kw_only=True):
    """`POST /decode`."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True

    def lists(self) -> list[list[int]]:
        """One list of ids per text. Raises ValidationError if ids and lists are mixed."""
        numbers = [item for item in self.ids if isinstance(item, int)]
        if numbers and len(numbers) < len(self.ids):
            raise ValidationError("`ids` must be token ids, or lists of token ids", param="ids")
        return [numbers] if numbers else [item for item in self.ids if not isinstance(item, int)]
