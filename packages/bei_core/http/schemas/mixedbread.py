"""mixedbread's API: `/v1/reranking`."""

from __future__ import annotations

from typing import Any

from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import ANY, BOOLEAN, INTEGER, NUMBER, STRING, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import USAGE, Common, RequestContext, refuse, usage
from bei_core.http.schemas.ranking import Document, TopN, pairs_of, passages_of, rank
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Rank


class RerankingRequest(Common, kw_only=True):
    """`POST /v1/reranking`."""

    kinds = (Kind.RERANKER,)

    query: str
    input: list[Document]
    model: str | None = None
    top_k: TopN | None = None
    return_input: bool = False
    rank_fields: list[str] | None = None  # the field of a document that has its text
    rewrite_query: bool | None = None
    instruction: str | None = None

    def to_task(self, model: ServedModel) -> Rank:
        """Returns the task. Raises ValidationError for an option that is not supported."""
        refuse({"rewrite_query": self.rewrite_query and "is not supported: no model here writes text"})
        pairs = pairs_of(self.query, passages_of(self.input, self.rank_fields))
        return rank(self, model, pairs, top_n=self.top_k, instruction=self.instruction)

    def to_reply(self, result: Result[list[tuple[int, float]]], context: RequestContext) -> dict[str, Any]:
        """Returns a list object, the best document first."""
        return {
            "object": "list",
            "model": self.model or context.model.name,
            "data": [
                {"object": "rank_result", "index": index, "score": score}
                | ({"input": self.input[index]} if self.return_input else {})
                for index, score in result.rows
            ],
            "top_k": len(result.rows),
            "return_input": self.return_input,
            "usage": usage(result.timings),
        }


_RESULT = object_of(["input"], object=STRING, index=INTEGER, score=NUMBER, input=ANY)

ROUTES = (
    Route(
        "POST",
        "/v1/reranking",
        "mixedbread: `input` by relevance to `query`; `top_k`, `return_input`, `rank_fields`",
        RerankingRequest,
        example={"query": "what grows", "input": ["a stone", "a tree"], "top_k": 1},
        reply=object_of(
            object=STRING, model=STRING, data=array_of(_RESULT), top_k=INTEGER, return_input=BOOLEAN, usage=USAGE
        ),
        errors=OPENAI,
        inputs="input",
    ),
)
