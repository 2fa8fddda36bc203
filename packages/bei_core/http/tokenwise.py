"""Bodies of the routes that answer for every token, or every term: `/embed_all`, `/embed_sparse`, `/predict_tokens`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import starmap
from typing import Any

import msgspec
import numpy as np

from bei_core.errors import EmptyInputError, ValidationError, WrongTaskError
from bei_core.http.requests import Common, Input, inputs_of
from bei_core.serving.service import Reply, Service
from bei_core.tasks import ClassifyTokens, EmbedAll, EmbedSparse, Sparse, TokenRows
from bei_core.text.ner import Entity, Piece, Strategy, entities, without

_OUTSIDE = ("O",)  # the label of what is no entity, which transformers leaves out


class EmbedAllRequest(Common):
    """`POST /embed_all`, text-embeddings-inference's."""

    inputs: Input

    def task(self, service: Service) -> EmbedAll:
        """The task; raises a RequestError for inputs that cannot be."""
        service.expect("embedding", "late-interaction")
        if not service.engine.token_width:
            raise WrongTaskError(f"{service.name} gives no vectors of tokens")
        return EmbedAll(inputs_of(self.inputs, "inputs"), self.encoding(service))


class EmbedSparseRequest(Common):
    """`POST /embed_sparse`, text-embeddings-inference's."""

    inputs: Input

    def task(self, service: Service) -> EmbedSparse:
        """The task; raises a RequestError for inputs that cannot be."""
        service.expect("sparse")
        return EmbedSparse(inputs_of(self.inputs, "inputs"), self.encoding(service))


class TokenParameters(msgspec.Struct):
    """What Hugging Face's clients send with a text."""

    aggregation_strategy: Strategy = "simple"
    ignore_labels: list[str] | None = None  # "O" by default


class PredictTokensRequest(Common):
    """`POST /predict_tokens`, Baseten's; with `parameters` it is answered as transformers' pipeline does."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False
    aggregation_strategy: Strategy | None = None  # none, or with `parameters` theirs
    ignore_labels: list[str] | None = None  # "O" where entities are aggregated
    parameters: TokenParameters | None = None

    @property
    def texts(self) -> list[str]:
        """One text an input. Raises EmptyInputError for none, ValidationError for what is no single text."""
        items = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        if not items:
            raise EmptyInputError("`inputs` cannot be empty", param="inputs")
        wrong = [len(item) for item in items if not isinstance(item, str) and len(item) != 1]
        if wrong:
            raise ValidationError(f"an input is a text or a list of one, got a list of {wrong[0]}", param="inputs")
        return [item if isinstance(item, str) else item[0] for item in items]

    def task(self, service: Service) -> ClassifyTokens:
        """The task; raises a RequestError for inputs that cannot be."""
        scoring = service.scoring("token-classifier")
        how = replace(self.encoding(service), chunk_tokens=None)
        return ClassifyTokens(self.texts, how, "none" if self.raw_scores else scoring)

    async def found(
        self, reply: Reply[Sequence[TokenRows]], service: Service, *, as_pipeline: bool = False
    ) -> list[Any]:
        """The body of the reply: transformers' entities, or Baseten's, or Baseten's tokens with their scores."""
        strategy = self._strategy(as_pipeline)
        tokenizer, how, texts = service.tokenizer, self.encoding(service), self.texts
        pieces = await tokenizer.apart(
            sum(map(len, texts)), lambda: [list(starmap(Piece, tokenizer.pieces(text, how))) for text in texts]
        )
        inputs = zip(texts, pieces, reply.rows, strict=True)
        if strategy == "none" and not as_pipeline:
            return [list(self._tokens(tokens, rows, service.labels)) for _, tokens, rows in inputs]
        ignored = self._ignored()
        shape = _as_transformers if as_pipeline else _as_baseten
        all_found = [
            [
                shape(entity, text, strategy)
                for entity in without(entities(text, tokens, rows, service.labels, tokenizer, strategy), ignored)
            ]
            for text, tokens, rows in inputs
        ]
        return all_found[0] if as_pipeline and isinstance(self.inputs, str) else all_found

    def _strategy(self, as_pipeline: bool) -> Strategy:
        """How tokens become entities."""
        if self.aggregation_strategy is not None:
            return self.aggregation_strategy
        return (self.parameters or TokenParameters()).aggregation_strategy if as_pipeline else "none"

    def _ignored(self) -> Collection[str]:
        asked = self.parameters.ignore_labels if self.parameters else None
        asked = self.ignore_labels if asked is None else asked
        return _OUTSIDE if asked is None else asked

    def _tokens(self, pieces: Sequence[Piece], rows: TokenRows, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Each token, with the scores of all labels where they are raw, else with the best one's."""
        for piece, row in zip(pieces, rows, strict=True):
            best = int(row.argmax())
            chosen = range(len(labels)) if self.raw_scores else (best,)
            if labels[best] not in (self.ignore_labels or ()):
                results = {labels[index]: float(row[index]) for index in chosen}
                yield _token(piece.token, piece.id, piece.start, piece.end, results)


def vectors(rows: Sequence[TokenRows]) -> list[TokenRows]:
    """The body of `/embed_all`."""
    return [np.ascontiguousarray(each) for each in rows]


def terms(rows: Sequence[Sparse]) -> list[list[dict[str, Any]]]:
    """The body of `/embed_sparse`: `[[{index, value}]]`, by index."""
    return [
        [{"index": index, "value": value} for index, value in zip(row.indices.tolist(), row.values, strict=True)]
        for row in rows
    ]


def _as_transformers(entity: Entity, text: str, strategy: Strategy) -> dict[str, Any]:
    """What the pipeline makes of an entity, or of a token."""
    place = {"word": entity.word, "start": entity.start, "end": entity.end}
    if strategy == "none":
        return {"entity": entity.label, "score": entity.score, "index": entity.index, **place}
    return {"entity_group": entity.label, "score": entity.score, **place}


def _as_baseten(entity: Entity, text: str, strategy: Strategy) -> dict[str, Any]:
    """What BEI makes of an entity, which has no one id, and with it what the pipeline does."""
    token = _token(text[entity.start : entity.end], 0, entity.start, entity.end, {entity.label: entity.score})
    return token | _as_transformers(entity, text, strategy)


def _token(token: str, token_id: int, start: int, end: int, results: dict[str, float]) -> dict[str, Any]:
    return {"token": token, "token_id": token_id, "start": start, "end": end, "results": results}
