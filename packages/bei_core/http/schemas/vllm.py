"""vLLM's API of pooling models: `/score`, `/pooling`, and its reply of `/classify`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bei_core.errors import ValidationError, WrongTaskError
from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import ANY, INTEGER, NUMBER, STRING, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import USAGE, Input, RequestContext, inputs_of, refuse, usage
from bei_core.http.schemas.ranking import Document, passages_of, rank
from bei_core.http.schemas.vllm_options import VllmOptions
from bei_core.models.kind import Kind
from bei_core.models.modules import BgeM3
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import (
    Classify,
    ClassifyTokens,
    Compute,
    Embed,
    Rank,
    Rows,
    Task,
    l2_normalize,
)

# The names that a body may give to the two sides of `/score`.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))

TaskName: TypeAlias = Literal["embed", "token_embed", "classify", "token_classify"]

_TASKS: Mapping[TaskName, Sequence[Kind]] = {
    "embed": (Kind.EMBEDDING,),
    "token_embed": (Kind.EMBEDDING, Kind.LATE_INTERACTION),
    "classify": (Kind.CLASSIFIER, Kind.RERANKER),
    "token_classify": (Kind.TOKEN_CLASSIFIER, Kind.SPARSE),  # bge-m3's weights of terms
}


class ScoreRequest(VllmOptions, kw_only=True):
    """`POST /score`: the relevance of pairs by a reranker, or the cosines of their vectors by an embedding model."""

    kinds = (Kind.RERANKER, Kind.EMBEDDING)

    text_1: Document | list[Document] | None = None
    text_2: Document | list[Document] | None = None
    queries: Document | list[Document] | None = None
    documents: Document | list[Document] | None = None
    items: Document | list[Document] | None = None
    data_1: Document | list[Document] | None = None
    data_2: Document | list[Document] | None = None
    model: str | None = None
    instruction: str | None = None  # for a model whose template has one

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the pairs of texts: one text with each of several, or the texts of two lists in order.

        Raises ValidationError if a side is missing, if more than two are given, or if their lengths do not fit.
        """
        for names in _SIDES:
            first, second = (_texts(getattr(self, name)) for name in names)
            if first is not None and second is not None:
                break
        else:
            raise ValidationError("give `text_1` and `text_2`, or `queries` and `documents`", param="text_1")
        others = {name for pair in _SIDES for name in pair if getattr(self, name) is not None}.difference(names)
        refuse(dict.fromkeys(sorted(others), f"excludes `{names[0]}` and `{names[1]}`"))
        if len(first) not in {1, len(second)}:
            raise ValidationError(
                f"`{names[0]}` must have one text or as many as `{names[1]}`, got {len(first)} and {len(second)}",
                param=names[0],
            )
        return list(zip(first * (len(second) if len(first) == 1 else 1), second, strict=True))

    def to_task(self, model: ServedModel) -> Rank | Embed:
        """Returns the task."""
        pairs = self.pairs()
        if Kind.RERANKER in model.roles:
            return rank(self, model, pairs, raw_scores=not self.activates, instruction=self.instruction)
        refuse({"instruction": self.instruction and "is for rerankers; this model gives vectors"})
        firsts = list(dict.fromkeys(first for first, _ in pairs))
        return Embed([*firsts, *(second for _, second in pairs)], self.encode_options(model))

    def to_reply(self, result: Result[Any], context: RequestContext) -> dict[str, Any]:
        """Returns a list object with a score per pair, in the order of the pairs."""
        if Kind.RERANKER in context.model.roles:
            scores = [score for _, score in sorted(result.rows)]
        else:
            scores = self._cosines(result.rows)
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        return list_object(data, result, context)

    def _cosines(self, rows: Rows) -> list[float]:
        pairs = self.pairs()
        places = {first: index for index, first in enumerate(dict.fromkeys(first for first, _ in pairs))}
        firsts = rows[[places[first] for first, _ in pairs]]
        cosines: list[float] = np.einsum("nd,nd->n", firsts, rows[len(places) :]).tolist()
        return cosines


class PoolingRequest(VllmOptions, kw_only=True):
    """`POST /pooling`: what the model gives for each text, a vector, scores, or either for each token."""

    kinds = (Kind.EMBEDDING, Kind.CLASSIFIER, Kind.RERANKER, Kind.TOKEN_CLASSIFIER, Kind.LATE_INTERACTION)

    input: Input
    model: str | None = None
    task: TaskName | None = None  # by default the model's own
    encoding_format: Literal["float"] | None = None
    dimensions: int | None = None

    def to_task(self, model: ServedModel) -> Task[Any]:
        """Returns the task. Raises ValidationError for `dimensions`, WrongTaskError if the model does not do `task`."""
        if self.dimensions is not None:
            raise ValidationError("`dimensions` is not supported here; /v1/embeddings takes it", param="dimensions")
        task = self.task or _own_task(model.kind)
        if model.roles.isdisjoint(_TASKS[task]):
            raise WrongTaskError(f"{model.name} is a model of kind {model.kind}, which does not do `task: {task}`")
        inputs, options = inputs_of(self.input), self.encode_options(model)
        scoring = model.scoring if self.activates else "none"
        if task == "embed":
            return Embed(inputs, options, normalize=self.activates)
        if task == "classify":
            return Classify(inputs, options, scoring)
        if model.bge_m3 is not None and not self.activates:
            raise ValidationError(
                f"`use_activation: false` is not supported with `task: {task}`", param="use_activation"
            )
        if task == "token_classify":
            return Compute(inputs, options, "weights") if model.bge_m3 else ClassifyTokens(inputs, options, scoring)
        is_normalized = model.kind is Kind.LATE_INTERACTION
        refuse({"use_activation": is_normalized and not self.activates and "can only be true for this model"})
        return model.embed_all(inputs, options)

    def to_reply(self, result: Result[Sequence[Any]], context: RequestContext) -> dict[str, Any]:
        """Returns a list object with the model's output for each text; vectors of tokens have length 1, as at vLLM."""
        of_tokens = context.model.kind is Kind.EMBEDDING and self.task == "token_embed" and self.activates
        rows = [np.ascontiguousarray(l2_normalize(row) if of_tokens else row) for row in result.rows]
        if self.task == "token_classify" and context.model.bge_m3 is not None:
            rows = [
                _without_ends(row, tokens.ids, context.model.bge_m3)
                for row, tokens in zip(rows, result.tokens, strict=True)
            ]
        return list_object(
            [{"index": index, "object": "pooling", "data": row} for index, row in enumerate(rows)], result, context
        )


def classes(rows: Rows, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the `data` of vLLM's `/classify`: the best label of each text, and the scores of all."""
    best = [int(row.argmax()) for row in rows]
    return [
        {"index": index, "label": labels[place], "probs": row, "num_classes": len(labels)}
        for index, (row, place) in enumerate(zip(rows, best, strict=True))
    ]


def _without_ends(weights: Rows, ids: npt.NDArray[np.int32], bge_m3: BgeM3) -> Rows:
    """Returns the weights f32[n] without those of <s> and </s>, as vLLM's `BOSEOSFilter` of this model does."""
    start, stop = (int(ids[end] in bge_m3.unweighted_ids) for end in (0, -1))
    return weights[start : len(weights) - stop]


def _own_task(kind: Kind) -> TaskName:
    """Returns the default task of a kind of model."""
    return next(name for name, kinds in _TASKS.items() if kind in kinds)


def _texts(side: Document | list[Document] | None) -> list[str] | None:
    """Returns the texts of one side of `/score`; None if it is not given."""
    return None if side is None else passages_of(side if isinstance(side, list) else [side], None)


def list_object(data: list[Any], result: Result[Any], context: RequestContext, name: str = "list") -> dict[str, Any]:
    """Returns the object of vLLM's replies, which is also that of Infinity's `/classify` under another `name`."""
    return {
        "id": context.request_id,
        "object": name,
        "created": int(time.time()),
        "model": context.model.name,
        "data": data,
        "usage": usage(result.timings),
    }


def _list_of(**item: Any) -> Any:  # noqa: ANN401 - JSON
    """Returns the JSON schema of what `list_object` returns."""
    data = array_of(object_of(index=INTEGER, object=STRING, **item))
    return object_of(id=STRING, object=STRING, created=INTEGER, model=STRING, data=data, usage=USAGE)


ROUTES = (
    Route(
        "POST",
        "/score",
        "vLLM: scores of pairs, `text_1` with `text_2` or `queries` with `documents`; cosines if the model embeds",
        ScoreRequest,
        example={"text_1": "what grows", "text_2": ["a stone", "a tree"]},
        reply=_list_of(score=NUMBER),
        errors=OPENAI,
        inputs="text_2",
        other_inputs=("documents", "items", "data_2"),
        aliases=("/v1/score",),
    ),
    Route(
        "POST",
        "/pooling",
        "vLLM: what the model gives for each text or, with `task`, for each token",
        PoolingRequest,
        example={"input": ["a tree grows"]},
        reply=_list_of(data=ANY),
        errors=OPENAI,
        inputs="input",
    ),
)
