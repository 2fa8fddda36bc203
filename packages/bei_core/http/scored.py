"""Bodies of the routes that answer with scores: `/predict`, `/classify`, and `/rerank` in TEI's and Cohere's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from bei_core.errors import EmptyInputError, ValidationError
from bei_core.http.requests import Common
from bei_core.http.responses import usage
from bei_core.serving.service import Reply, Service
from bei_core.tasks import Classify, Encoding, Pair, Rank, Rows, Scoring, best_first

# `/predict`: one text, or a list that is either one input (a text, or two read together) or lists of those.
Inputs: TypeAlias = str | list[str | list[str]]


class PredictRequest(Common):
    """`POST /predict`: a classifier's labels, or a reranker's score, for texts and pairs of texts."""

    inputs: Inputs
    raw_scores: bool = False

    @property
    def is_single(self) -> bool:
        """Whether the reply is for one input, without a list around it; `["a", "b"]` is one pair."""
        return isinstance(self.inputs, str) or all(isinstance(item, str) for item in self.inputs)

    def task(self, service: Service) -> Classify:
        """The task; raises a RequestError for inputs that cannot be."""
        if not self.inputs:
            raise EmptyInputError("`inputs` cannot be empty", param="inputs")
        items: Sequence[Any] = [self.inputs] if self.is_single else self.inputs
        return classify(service, [_input(item) for item in items], self.encoding(service), raw=self.raw_scores)


class ClassifyRequest(Common):
    """`POST /classify`: texts, in the shape of Infinity's clients."""

    input: str | list[str]
    model: str | None = None
    raw_scores: bool = False

    def task(self, service: Service) -> Classify:
        """The task; raises a RequestError for inputs that cannot be."""
        items = [self.input] if isinstance(self.input, str) else self.input
        return classify(service, [_input(item) for item in items], self.encoding(service), raw=self.raw_scores)


class Document(msgspec.Struct):
    """A document as Cohere's v1 and Jina's clients may send it."""

    text: str


class RerankRequest(Common):
    """`POST /rerank`: `texts` for TEI's reply, `documents` for Cohere's and Jina's."""

    query: str
    texts: list[str] | None = None
    documents: list[str | Document] | None = None
    model: str | None = None
    top_n: int | None = None
    raw_scores: bool = False
    return_text: bool = False
    return_documents: bool = False
    instruction: str | None = None  # for models whose template has one

    @property
    def passages(self) -> list[str]:
        """The texts to rank. Raises ValidationError where neither field, or both, are there."""
        if (self.texts is None) == (self.documents is None):
            raise ValidationError("give either `texts` or `documents`", param="texts")
        if self.texts is not None:
            return self.texts
        return [item.text if isinstance(item, Document) else item for item in self.documents or ()]

    def task(self, service: Service) -> Classify:
        """The task; raises a RequestError for inputs that cannot be."""
        if not service.ranks:
            service.expect("reranker")
        if self.top_n is not None and self.top_n < 1:
            raise ValidationError(f"`top_n` must be at least 1, got {self.top_n}", param="top_n")
        texts = self.passages
        if not texts:
            raise EmptyInputError("`inputs` cannot be empty", param="inputs")
        if not self.query:
            raise EmptyInputError("`query` cannot be empty", param="query")
        pairs = [service.together(self.query, text, self.instruction) for text in texts]
        return Rank(pairs, self.encoding(service), "none" if self.raw_scores else self._scoring(service))

    def _scoring(self, service: Service) -> Scoring:
        """How one label's logit becomes a score; the margin of two is a logit too."""
        return service.scoring("reranker", "classifier") if len(service.labels) == 1 else "sigmoid"

    def tei_reply(self, reply: Reply[Rows]) -> list[dict[str, Any]]:
        """`[{index, score, text?}]`, the best first."""
        scores, texts = reply.rows[:, 0], self.passages
        found = [{"index": index, "score": float(scores[index])} for index in best_first(scores, self.top_n)]
        return [item | {"text": texts[int(item["index"])]} for item in found] if self.return_text else found

    def cohere_reply(self, reply: Reply[Rows], request_id: str, model: str) -> dict[str, Any]:
        """Cohere's and Jina's body: `{id, results: [{index, relevance_score, document?}], meta, usage}`."""
        scores, texts = reply.rows[:, 0], self.passages
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": float(scores[index])} for index in best_first(scores, self.top_n)
        ]
        for result in results if self.return_documents else ():
            result["document"] = {"text": texts[result["index"]]}
        return {
            "id": request_id,
            "model": model,
            "results": results,
            "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
            "usage": usage(reply.timings),
        }


def classify(service: Service, inputs: Sequence[str | Pair], encoding: Encoding, *, raw: bool) -> Classify:
    """Scores for inputs. Raises EmptyInputError for none, WrongTaskError where the model gives no scores."""
    scoring = service.scoring("classifier", "reranker")
    if not inputs:
        raise EmptyInputError("`inputs` cannot be empty", param="inputs")
    return Classify(inputs, encoding, "none" if raw else scoring)


def labelled(reply: Reply[Rows], labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """`[[{label, score}]]`, the best label first."""
    return [[{"label": labels[index], "score": float(row[index])} for index in best_first(row)] for row in reply.rows]


def _input(item: str | list[str]) -> str | Pair:
    """A text, or a pair of two. Raises ValidationError for a list of another length."""
    if isinstance(item, str):
        return item
    if len(item) not in {1, 2}:
        raise ValidationError(f"an input is a text or a pair of texts, got a list of {len(item)}", param="inputs")
    return item[0] if len(item) == 1 else Pair(item[0], item[1])
