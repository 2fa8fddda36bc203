"""NVIDIA's API of NeMo Retriever's reranking microservices: `/v1/ranking`, and the path of its hosted models."""

from __future__ import annotations

from typing import Any

from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import INTEGER, NUMBER, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import USAGE, Common, RequestContext, usage
from bei_core.http.schemas.ranking import TopN, pairs_of, rank, text_of
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Rank


class RankingRequest(Common, kw_only=True):
    """`POST /v1/ranking`, and `/v1/retrieval/{model}/reranking`; the `model` of the body chooses among several."""

    kinds = (Kind.RERANKER,)

    query: dict[str, Any]
    passages: list[dict[str, Any]]
    top_k: TopN | None = None  # litellm's

    def to_task(self, model: ServedModel) -> Rank:
        """Returns the task. Raises ValidationError for a query or a passage without text, such as an image."""
        passages = [text_of(passage) for passage in self.passages]
        return rank(self, model, pairs_of(text_of(self.query), passages), top_n=self.top_k, raw_scores=True)

    def to_reply(self, result: Result[list[tuple[int, float]]], context: RequestContext) -> dict[str, Any]:
        """Returns the logits of the passages, the best passage first."""
        return {
            "rankings": [{"index": index, "logit": logit} for index, logit in result.rows],
            "usage": usage(result.timings),
        }


ROUTES = (
    Route(
        "POST",
        "/v1/ranking",
        "NVIDIA: `passages` by the logit of their relevance to `query`; `truncate`, `top_k`",
        RankingRequest,
        example={"query": {"text": "what grows"}, "passages": [{"text": "a stone"}, {"text": "a tree"}]},
        reply=object_of(rankings=array_of(object_of(index=INTEGER, logit=NUMBER)), usage=USAGE),
        errors=OPENAI,
        inputs="passages",
        aliases=("/v1/retrieval/{model}/reranking",),
    ),
)
