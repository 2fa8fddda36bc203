"""`/rerank`, `/v1/rerank` and `/v2/rerank`, which several APIs share.

The fields of the body decide which API's reply is sent. If they are the same in two APIs, a prefix of the path decides:

| body | reply |
|---|---|
| `texts` | text-embeddings-inference's |
| `documents` with `top_k` or `truncation`; a path that starts with /voyage | Voyage's |
| `documents` with `raw_scores`; a path that starts with /infinity | Infinity's |
| a path that starts with /elastic | text-embeddings-inference's (`schemas/elastic`) |
| other `documents` | that of Cohere, Jina and vLLM |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from bei_core.errors import ValidationError
from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import INTEGER, NUMBER, OBJECT, STRING, any_of, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import USAGE, RequestContext, agreed, refuse, usage
from bei_core.http.schemas.ranking import Document, Flag, TopN, is_set, pairs_of, passages_of, rank, ranks
from bei_core.http.schemas.vllm_options import VllmOptions
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Rank

Ranking: TypeAlias = Result[list[tuple[int, float]]]  # index and score, the best first


class RerankRequest(VllmOptions, kw_only=True):
    """`POST /rerank` and `/v1/rerank`."""

    kinds = (Kind.RERANKER,)
    returns_documents: ClassVar[bool] = True  # whether Cohere's reply has the documents if nothing is said
    cohere_version: ClassVar[str] = "1"
    is_infinity: ClassVar[bool] = False
    is_voyage: ClassVar[bool] = False

    query: str
    texts: list[str] | None = None
    documents: list[Document] | None = None
    model: str | None = None
    top_n: TopN | None = None
    top_k: TopN | None = None  # Voyage's name of it
    raw_scores: Flag | None = None
    return_text: Flag | None = None
    return_documents: Flag | None = None
    rank_fields: list[str] | None = None  # Cohere's: the field of a document that has its text
    max_chunks_per_doc: int | None = None  # Cohere's
    relevant_spans: bool | None = None  # Cohere's
    return_embeddings: bool | None = None  # Jina's
    instruction: str | None = None  # for a model whose template has one

    @property
    def passages(self) -> list[str]:
        """The texts to rank. Raises ValidationError unless exactly one field is set, or if a document has no text."""
        if (self.texts is None) == (self.documents is None):
            raise ValidationError("give either `texts` or `documents`", param="texts")
        if self.texts is not None:
            return self.texts
        return passages_of(self.documents or (), self.rank_fields)

    @property
    def asks_for_texts(self) -> bool | None:
        """Whether the reply is to have the texts, by TEI's or Cohere's name. Raises ValidationError if they differ."""
        one, other = self.return_text, self.return_documents
        if one is None or other is None:
            flag = other if one is None else one
            return None if flag is None else is_set(flag)
        asked: bool = agreed(return_text=is_set(one), return_documents=is_set(other))
        return asked

    def to_task(self, model: ServedModel) -> Rank:
        """Returns the task. Raises ValidationError for an option that is not supported or contradicts another one."""
        self.asks_for_texts  # noqa: B018 - raises before the model runs
        limits_chunks = self.max_chunks_per_doc is not None
        best = "is not supported; with `chunk: true` the best chunk of a document counts"
        refuse(
            {
                "max_chunks_per_doc": limits_chunks and best,
                "relevant_spans": self.relevant_spans and "is not supported",
                "return_embeddings": self.return_embeddings and "is not supported: a reranker gives no vectors",
            }
        )
        return rank(
            self,
            model,
            pairs_of(self.query, self.passages),
            top_n=agreed(top_n=self.top_n or None, top_k=self.top_k or None),
            raw_scores=is_set(self.raw_scores) or not self.activates,
            instruction=self.instruction,
        )

    def to_reply(self, result: Ranking, context: RequestContext) -> list[Any] | dict[str, Any]:
        """Returns the reply in the format of the API that the body belongs to, the best document first."""
        if self.texts is not None:
            return ranks(result.rows, self.texts if self.asks_for_texts else None)
        if self.is_voyage or self.top_k is not None or self.truncation is not None:
            return _of_voyage(self, result, context)
        if self.is_infinity or self.raw_scores is not None:
            return _of_infinity(self, result, context)
        return _of_cohere(self, result, context)


class CohereV2RerankRequest(RerankRequest):
    """`POST /v2/rerank`: Cohere's second version returns no documents."""

    returns_documents, cohere_version = False, "2"


class InfinityRerankRequest(RerankRequest):
    """`POST /infinity/rerank`."""

    is_infinity = True


class VoyageRerankRequest(RerankRequest):
    """`POST /voyage/v1/rerank`."""

    is_voyage = True


def _of_cohere(body: RerankRequest, result: Ranking, context: RequestContext) -> dict[str, Any]:
    """Returns an object that contains the fields of Cohere, Jina and vLLM."""
    return {
        "id": context.request_id,
        "model": body.model or context.model.name,
        "results": _results(body, result, body.returns_documents, lambda text: {"text": text}),
        "meta": {"api_version": {"version": body.cohere_version}, "billed_units": {"search_units": 1}},
        "usage": usage(result.timings),
    }


def _of_infinity(body: RerankRequest, result: Ranking, context: RequestContext) -> dict[str, Any]:
    """Returns Infinity's object, in which a document is a text."""
    return {
        "object": "rerank",
        "id": context.request_id,
        "created": int(time.time()),
        "model": body.model or context.model.name,
        "results": _results(body, result, False, str),
        "usage": usage(result.timings),
    }


def _of_voyage(body: RerankRequest, result: Ranking, context: RequestContext) -> dict[str, Any]:
    """Returns Voyage's object, in which the results are in `data` and a document is a text."""
    return {
        "object": "list",
        "model": body.model or context.model.name,
        "data": _results(body, result, False, str),
        "usage": usage(result.timings),
    }


def _results(
    body: RerankRequest, result: Ranking, default: bool, document: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Returns the results, with their documents if `return_documents` is true; `default` is its default."""
    texts = body.passages if is_set(body.asks_for_texts, default) else None
    return [
        {"index": index, "relevance_score": score} | ({"document": document(texts[index])} if texts else {})
        for index, score in result.rows
    ]


_RANKS = array_of(object_of(["text"], index=INTEGER, score=NUMBER, text=STRING))
_DOCUMENT = any_of(object_of(text=STRING), STRING)
_RESULTS = array_of(object_of(["document"], index=INTEGER, relevance_score=NUMBER, document=_DOCUMENT))
_COHERE = object_of(id=STRING, model=STRING, results=_RESULTS, meta=OBJECT, usage=USAGE)
_INFINITY = object_of(object=STRING, id=STRING, created=INTEGER, model=STRING, results=_RESULTS, usage=USAGE)
_VOYAGE = object_of(object=STRING, model=STRING, data=_RESULTS, usage=USAGE)
_REPLY = any_of(_RANKS, _COHERE, _INFINITY, _VOYAGE)

ROUTES = (
    Route(
        "POST",
        "/rerank",
        "texts by relevance; the body's fields [decide whose reply](#reranking) it is",
        RerankRequest,
        example={"query": "what grows", "texts": ["a stone", "a tree"]},
        reply=_REPLY,
        inputs="texts",
        other_inputs=("documents",),
        by_fields=True,
    ),
    Route(
        "POST",
        "/v1/rerank",
        "the same, with errors in OpenAI's shape",
        RerankRequest,
        example={"query": "what grows", "documents": ["a stone", "a tree"], "top_n": 1},
        reply=_REPLY,
        errors=OPENAI,
        inputs="documents",
        other_inputs=("texts",),
    ),
    Route(
        "POST",
        "/v2/rerank",
        "the same, without documents in the reply unless `return_documents` is true (Cohere)",
        CohereV2RerankRequest,
        example={"query": "what grows", "documents": ["a stone", "a tree"], "top_n": 1},
        reply=_REPLY,
        errors=OPENAI,
        inputs="documents",
        other_inputs=("texts",),
    ),
    Route(
        "POST",
        "/infinity/rerank",
        "the same, with Infinity's reply to `documents`",
        InfinityRerankRequest,
        example={"query": "what grows", "documents": ["a stone", "a tree"]},
        reply=_REPLY,
        errors=OPENAI,
        inputs="documents",
        other_inputs=("texts",),
    ),
    Route(
        "POST",
        "/voyage/v1/rerank",
        "the same, with Voyage's reply to `documents`",
        VoyageRerankRequest,
        example={"query": "what grows", "documents": ["a stone", "a tree"]},
        reply=_REPLY,
        errors=OPENAI,
        inputs="documents",
        other_inputs=("texts",),
    ),
)
