"""Infinity's API: `/classify`."""

from __future__ import annotations

import time
from typing import Any

from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import INTEGER, STRING, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import LABELS, USAGE, Common, RequestContext, classify, labelled, usage
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Classify, Rows


class ClassifyRequest(Common, kw_only=True):
    """`POST /classify`."""

    kinds = (Kind.CLASSIFIER, Kind.RERANKER)

    input: str | list[str]
    model: str | None = None
    raw_scores: bool = False

    def to_task(self, model: ServedModel) -> Classify:
        """The task."""
        items = [self.input] if isinstance(self.input, str) else self.input
        return classify(items, self.encode_options(model), "none" if self.raw_scores else model.scoring)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """A list object with `[{label, score}]` per text."""
        return {
            "id": context.request_id,
            "object": "classify",
            "created": int(time.time()),
            "model": context.model.name,
            "data": labelled(result.rows, context.model.labels),
            "usage": usage(result.timings),
        }


ROUTES = (
    Route(
        "POST",
        "/classify",
        "labels and scores of texts, in Infinity's shape; `raw_scores`",
        ClassifyRequest,
        reply=object_of(id=STRING, object=STRING, created=INTEGER, model=STRING, data=array_of(LABELS), usage=USAGE),
        errors=OPENAI,
        inputs="input",
    ),
)
