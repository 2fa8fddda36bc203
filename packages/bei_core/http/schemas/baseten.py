"""Labels of tokens: Baseten's `/predict_tokens`, and the entities that Hugging Face's clients expect of a pipeline."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from bei_core.errors import ValidationError
from bei_core.http.json_schema import INTEGER, NUMBER, STRING, any_of, array_of, map_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import Common, PipelineParameters, RequestContext, agreed, refuse
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import ClassifyTokens, TokenRows, TokenSpan
from bei_core.text.ner import Entity, Strategy, drop_ignored, find_entities
from bei_core.text.refusals import no_texts

_OUTSIDE = ("O",)  # the label of a token outside of any entity


class TokenParameters(PipelineParameters):
    """What Hugging Face's clients send for a token classification pipeline."""

    aggregation_strategy: Strategy | None = None  # "simple" by default
    ignore_labels: list[str] | None = None  # "O" by default
    stride: int | None = None


class PredictTokensRequest(Common):
    """`POST /predict_tokens`; with `parameters` the reply is that of a transformers pipeline."""

    kinds = (Kind.TOKEN_CLASSIFIER,)

    inputs: str | list[str | list[str]]
    raw_scores: bool = False
    aggregation_strategy: Strategy | None = None  # by default "none", or with `parameters` theirs
    ignore_labels: list[str] | None = None  # "O" by default where tokens are aggregated
    parameters: TokenParameters | None = None

    @property
    def texts(self) -> list[str]:
        """The texts, one per input. Raises EmptyInputError for none, ValidationError for an input of several texts."""
        items = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        if not items:
            raise no_texts()
        wrong = [len(item) for item in items if not isinstance(item, str) and len(item) != 1]
        if wrong:
            raise ValidationError(f"an input is a text or a list of one, got a list of {wrong[0]}", param="inputs")
        return [item if isinstance(item, str) else item[0] for item in items]

    def to_task(self, model: ServedModel) -> ClassifyTokens:
        """Returns the task. Raises ValidationError for options that are not supported or contradict each other."""
        for name in ("aggregation_strategy", "ignore_labels"):
            self._agreed(name)
        stride = self.parameters.stride if self.parameters else None
        refuse({"stride": stride and "is not supported; split a text that is too long, and send its parts"})
        options = self.encode_options(model, spans=True)
        if self.parameters is not None:
            options = self.parameters.applied(self, options)
        return ClassifyTokens(self.texts, options, "none" if self.raw_scores else model.scoring)

    def to_reply(self, result: Result[list[TokenRows]], context: RequestContext) -> list[Any]:
        """Returns tokens with scores, or entities, in the format of Baseten or of a transformers pipeline."""
        as_pipeline, model = self.parameters is not None or context.is_by_fields, context.model
        strategy = self._strategy(as_pipeline)
        spans = [tokens.spans for tokens in result.tokens]
        if strategy == "none" and not as_pipeline:
            pairs = zip(spans, result.rows, strict=True)
            return [list(self._scored(tokens, rows, model.labels)) for tokens, rows in pairs]
        ignored = self._ignored()
        found: list[Any] = []
        for text, tokens, rows in zip(self.texts, spans, result.rows, strict=True):
            entities = find_entities(text, tokens, rows, model.labels, model.vocabulary, strategy)
            kept = drop_ignored(entities, ignored)
            found.append(
                [_of_pipeline(entity, strategy) if as_pipeline else _of_baseten(entity, text) for entity in kept]
            )
        return found[0] if as_pipeline and isinstance(self.inputs, str) else found

    def _strategy(self, as_pipeline: bool) -> Strategy:
        """Returns how to group tokens into entities."""
        asked: Strategy | None = self._agreed("aggregation_strategy")
        return asked or ("simple" if as_pipeline else "none")

    def _ignored(self) -> Collection[str]:
        """Returns the labels of the entities to leave out."""
        asked: list[str] | None = self._agreed("ignore_labels")
        return _OUTSIDE if asked is None else asked

    def _agreed(self, name: str) -> Any:  # noqa: ANN401 - the type of the field
        """Returns a field that may be in `parameters` too. Raises ValidationError if the two differ."""
        return agreed(**{name: getattr(self, name), f"parameters.{name}": getattr(self.parameters, name, None)})

    def _scored(self, tokens: Sequence[TokenSpan], rows: TokenRows, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields each token with the score of its best label or, with `raw_scores`, the scores of all labels."""
        for token, row in zip(tokens, rows, strict=True):
            best = int(row.argmax())
            chosen = range(len(labels)) if self.raw_scores else (best,)
            if labels[best] not in (self.ignore_labels or ()):
                results = {labels[index]: float(row[index]) for index in chosen}
                yield _token(token.token, token.id, token.start, token.end, results)


def _of_pipeline(entity: Entity, strategy: Strategy) -> dict[str, Any]:
    """Returns an entity, or with "none" a token, in the format of a transformers pipeline."""
    place = {"word": entity.word, "start": entity.start, "end": entity.end}
    if strategy == "none":
        return {"entity": entity.label, "score": entity.score, "index": entity.index, **place}
    return {"entity_group": entity.label, "score": entity.score, **place}


def _of_baseten(entity: Entity, text: str) -> dict[str, Any]:
    """Returns an entity in BEI's format: the fields of a token, with token id 0, and those of a pipeline."""
    token = _token(text[entity.start : entity.end], 0, entity.start, entity.end, {entity.label: entity.score})
    return token | _of_pipeline(entity, "simple")


def _token(token: str, token_id: int, start: int, end: int, results: dict[str, float]) -> dict[str, Any]:
    return {"token": token, "token_id": token_id, "start": start, "end": end, "results": results}


_TOKEN = object_of(
    ["entity_group", "score", "word"],
    token=STRING,
    token_id=INTEGER,
    start=INTEGER,
    end=INTEGER,
    results=map_of(NUMBER),
    entity_group=STRING,
    score=NUMBER,
    word=STRING,
)
_ENTITY = object_of(
    ["entity", "entity_group", "index"],
    entity=STRING,
    entity_group=STRING,
    score=NUMBER,
    index=INTEGER,
    word=STRING,
    start=INTEGER,
    end=INTEGER,
)

ROUTES = (
    Route(
        "POST",
        "/predict_tokens",
        "labels of tokens, or entities: `aggregation_strategy` is `none`, `simple`, `first`, `average` or `max`",
        PredictTokensRequest,
        example={"inputs": [["Anna lives in Paris."]], "aggregation_strategy": "simple"},
        reply=any_of(array_of(array_of(_TOKEN)), array_of(_ENTITY), array_of(array_of(_ENTITY))),
        by_fields=True,
        default_for=(Kind.TOKEN_CLASSIFIER,),
    ),
)
