"""`/rerank`, in the shape of Cohere and Jina (`documents`) and in that of TEI (`texts`)."""

from __future__ import annotations

from typing import Any

import msgspec

from bei_core.errors import EmptyInputError, ValidationError
from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import INTEGER, NUMBER, OBJECT, STRING, any_of, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas import cohere_embed
from bei_core.http.schemas.common import USAGE, Common, RequestContext, usage
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Rank, Scoring


class Document(msgspec.Struct):
    """A document as clients of Cohere's v1 and Jina's may send it."""

    text: str


class RerankRequest(Common, kw_only=True):
    """`POST /rerank`; the field that holds the texts decides the shape of the reply."""

    kinds = (Kind.RERANKER,)

    query: str
    texts: list[str] | None = None
    documents: list[str | Document] | None = None
    model: str | None = None
    top_n: int | None = None  # 0, as some clients send it: all
    raw_scores: bool = False
    return_text: bool = False
    return_documents: bool = False
    instruction: str | None = None  # for a model whose template has one

    @property
    def passages(self) -> list[str]:
        """The texts to rank. Raises ValidationError unless one of the two fields is there."""
        if (self.texts is None) == (self.documents is None):
            raise ValidationError("give either `texts` or `documents`", param="texts")
        if self.texts is not None:
            return self.texts
        return [item.text if isinstance(item, Document) else item for item in self.documents or ()]

    def to_task(self, model: ServedModel) -> Rank:
        """The task."""
        if self.top_n is not None and self.top_n < 0:
            raise ValidationError(f"`top_n` must not be negative, got {self.top_n}", param="top_n")
        texts = self.passages
        if not texts:
            raise EmptyInputError("`inputs` cannot be empty", param="inputs")
        if not self.query:
            raise EmptyInputError("`query` cannot be empty", param="query")
        # The score of two labels, "no" and "yes", is the difference of their logits, which is a logit itself.
        scoring: Scoring = model.scoring if len(model.labels) == 1 else "sigmoid"
        pairs = model.pairs(self.query, texts, self.instruction)
        return Rank(pairs, self.encode_options(model), "none" if self.raw_scores else scoring, self.top_n or None)

    def to_reply(self, result: Result[list[tuple[int, float]]], context: RequestContext) -> list[Any] | dict[str, Any]:
        """TEI's list for `texts`, Cohere's and Jina's object for `documents`; the best first."""
        best, texts = result.rows, self.passages
        if self.documents is None:
            with_text = ({"text": texts[index]} if self.return_text else {} for index, _ in best)
            return [
                {"index": index, "score": score} | text for (index, score), text in zip(best, with_text, strict=True)
            ]
        with_document = ({"document": {"text": texts[i]}} if self.return_documents else {} for i, _ in best)
        return {
            "id": context.request_id,
            "model": self.model or context.model.name,
            "results": [
                {"index": index, "relevance_score": score} | document
                for (index, score), document in zip(best, with_document, strict=True)
            ],
            "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
            "usage": usage(result.timings),
        }


_RANKS = array_of(object_of(["text"], index=INTEGER, score=NUMBER, text=STRING))
_RESULT = object_of(["document"], index=INTEGER, relevance_score=NUMBER, document=object_of(text=STRING))
_RANKING = object_of(id=STRING, model=STRING, results=array_of(_RESULT), meta=OBJECT, usage=USAGE)

ROUTES = (
    *cohere_embed.ROUTES,
    Route(
        "POST",
        "/rerank",
        "with `texts`: TEI's reply; with `documents`: Cohere's and Jina's reply; `top_n`, `raw_scores`",
        RerankRequest,
        reply=any_of(_RANKS, _RANKING),
        inputs="texts",
        by_shape=True,
    ),
    Route(
        "POST",
        "/v1/rerank",
        "the same, with errors in OpenAI's shape",
        RerankRequest,
        reply=any_of(_RANKS, _RANKING),
        errors=OPENAI,
        inputs="documents",
        aliases=("/v2/rerank",),
    ),
)
