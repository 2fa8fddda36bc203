"""The rerank body of Elasticsearch's inference service `hugging_face`: `/elastic/rerank`.

Its newest source sends `texts` and `return_text`, which `/rerank` answers too. An older one sent `documents` and
`return_documents`. Both read a list with `index`, `score` and `text`.
"""

from __future__ import annotations

from typing import Any

from bei_core.http.json_schema import INTEGER, NUMBER, STRING, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import RequestContext
from bei_core.http.schemas.ranking import ranks
from bei_core.http.schemas.rerank import Ranking, RerankRequest


class ElasticRerankRequest(RerankRequest):
    """`POST /elastic/rerank`."""

    def to_reply(self, result: Ranking, context: RequestContext) -> list[Any]:
        """Returns the list, the best document first, with texts if `return_text` or `return_documents` is true."""
        return ranks(result.rows, self.passages if self.asks_for_texts else None)


ROUTES = (
    Route(
        "POST",
        "/elastic/rerank",
        "Elasticsearch: the same, with TEI's reply to `documents` too",
        ElasticRerankRequest,
        example={"query": "what grows", "documents": ["a stone", "a tree"]},
        reply=array_of(object_of(["text"], index=INTEGER, score=NUMBER, text=STRING)),
        inputs="documents",
        other_inputs=("texts",),
    ),
)
