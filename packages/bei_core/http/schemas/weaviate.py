"""The servers of Weaviate's modules text2vec-transformers and reranker-transformers: `/vectors`, `/weaviate/rerank`.

Weaviate appends the paths to an address. `http://host/weaviate` has them all; `/rerank` without the prefix belongs to
other APIs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.json_schema import INTEGER, NUMBER, STRING, any_of, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import Common, RequestContext, refuse, texts_of
from bei_core.http.schemas.probes import health, live
from bei_core.http.schemas.ranking import pairs_of, rank
from bei_core.http.schemas.tei import MODEL_INFO, info
from bei_core.http.schemas.vectors import as_lists, prompt_name
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Embed, Rank, Rows, check_dimensions


class VectorsConfig(msgspec.Struct):
    """The options of `/vectors`."""

    pooling_strategy: str | None = None
    task_type: str | None = None  # query or passage: chooses one of the model's prompts
    dimensions: int | None = None


class VectorsRequest(Common, kw_only=True):
    """`POST /vectors`."""

    kinds = (Kind.EMBEDDING,)

    text: str | None = None
    texts: list[str] | None = None  # of versions that send several at once
    config: VectorsConfig | None = None

    def to_task(self, model: ServedModel) -> Embed:
        """Returns the task. Raises ValidationError for a pooling other than the model's."""
        if (self.text is None) == (self.texts is None):
            raise ValidationError("give either `text` or `texts`", param="text")
        config = self.config or VectorsConfig()
        refuse({"pooling_strategy": _unlike(config.pooling_strategy or "", model.pooling)})
        if config.dimensions is not None:
            check_dimensions(config.dimensions, model.row_width)  # before any work
        name = prompt_name(config.task_type, model, "task_type") if config.task_type else None
        return Embed(
            texts_of(self.text if self.text is not None else self.texts or ()),
            self.encode_options(model, prompt_name=name),
            dimensions=config.dimensions,
        )

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """Returns one vector f32[D], or all for `texts`. Weaviate's server writes `dim`, its client reads `dims`."""
        rows, width = as_lists(result.rows, "float"), result.rows.shape[1]
        vectors = {"text": self.text, "vector": rows[0]} if self.texts is None else {"vectors": rows}
        return {**vectors, "dim": width, "dims": width}


class WeaviateRerankRequest(Common, kw_only=True):
    """`POST /weaviate/rerank`."""

    kinds = (Kind.RERANKER,)

    query: str
    documents: list[str]

    def to_task(self, model: ServedModel) -> Rank:
        """Returns the task."""
        return rank(self, model, pairs_of(self.query, self.documents))

    def to_reply(self, result: Result[list[tuple[int, float]]], context: RequestContext) -> dict[str, Any]:
        """Returns the scores in the order of the documents: Weaviate finds the score of a document by its place."""
        scores = [{"document": self.documents[index], "score": score} for index, score in sorted(result.rows)]
        return {"query": self.query, "scores": scores}


def _unlike(strategy: str, own: str) -> str:
    """Returns why a pooling strategy is refused; "" if it is the model's own.

    So is `masked_mean`, because Weaviate sends it for every collection that does not set another one.
    """
    if strategy in {"", "masked_mean", own}:
        return ""
    return f"is {strategy}, and this model pools by {own}: leave `poolingStrategy` of the collection out"


_SCORE = object_of(document=STRING, score=NUMBER)
_VECTOR = array_of(NUMBER)

ROUTES = (
    Route(
        "POST",
        "/vectors",
        "Weaviate's text2vec-transformers: `text` or `texts`; `config` with its options",
        VectorsRequest,
        example={"text": "a tree grows", "config": {"task_type": "passage"}},
        reply=any_of(
            object_of(text=STRING, vector=_VECTOR, dim=INTEGER, dims=INTEGER),
            object_of(vectors=array_of(_VECTOR), dim=INTEGER, dims=INTEGER),
        ),
        inputs="text",
        other_inputs=("texts",),
        aliases=("/weaviate/vectors",),
    ),
    Route(
        "POST",
        "/weaviate/rerank",
        "Weaviate's reranker-transformers: the `scores` of `documents`, in their order",
        WeaviateRerankRequest,
        example={"query": "what grows", "documents": ["a stone", "a tree"]},
        reply=object_of(query=STRING, scores=array_of(_SCORE)),
        inputs="documents",
    ),
    Route(
        "GET",
        "/meta",
        "Weaviate: what is served, as `/info` says it",
        answer=info,
        reply=MODEL_INFO,
        aliases=("/weaviate/meta",),
    ),
    Route(
        "GET",
        "/.well-known/ready",
        "Weaviate: 200 if the model answers",
        answer=health,
        reply=object_of(unix=NUMBER),
        public=True,
        aliases=("/weaviate/.well-known/ready",),
    ),
    Route(
        "GET",
        "/.well-known/live",
        "Weaviate: 200 if the process answers",
        answer=live,
        public=True,
        aliases=("/weaviate/.well-known/live",),
    ),
)
