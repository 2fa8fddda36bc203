"""`/predict` of Baseten and TEI, with what Hugging Face's clients send to a text classification pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from bei_core.errors import ValidationError
from bei_core.http.json_schema import any_of, array_of
from bei_core.http.route import Route
from bei_core.http.schemas.common import LABELS, Common, PipelineParameters, RequestContext, classify, labelled, refuse
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Classify, Pair, Rows

# `/predict`: a text; a pair, which is a list of two texts; or a list of such.
Inputs: TypeAlias = str | list[str | list[str]]


class LabelParameters(PipelineParameters):
    """What Hugging Face's clients send for a text classification pipeline."""

    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None  # all labels
    return_all_scores: bool | None = None  # false: the best label; `top_k` comes first, as in transformers
    candidate_labels: Any = None  # of zero-shot classification, which no model here does
    hypothesis_template: Any = None
    multi_label: Any = None

    @property
    def num_labels(self) -> int | None:
        """How many labels to reply with, the best first; None means all."""
        return 1 if self.top_k is None and self.return_all_scores is False else self.top_k

    def check(self) -> None:
        """Raises ValidationError for a field of zero-shot classification."""
        for field in ("candidate_labels", "hypothesis_template", "multi_label"):
            refuse({field: getattr(self, field) is not None and "is not supported: the model has its own labels"})


class PredictRequest(Common):
    """`POST /predict`: a classifier's labels or a reranker's score, for texts and for pairs of texts."""

    kinds = (Kind.CLASSIFIER, Kind.RERANKER)

    inputs: Inputs
    raw_scores: bool = False
    parameters: LabelParameters | None = None  # if set, the reply is a list of lists, like a transformers pipeline's

    @property
    def is_single(self) -> bool:
        """Whether the body has one input that is not in a list of inputs; `["a", "b"]` is one pair."""
        return isinstance(self.inputs, str) or all(isinstance(item, str) for item in self.inputs)

    def to_task(self, model: ServedModel) -> Classify:
        """Returns the task."""
        items: Sequence[Any] = [self.inputs] if self.is_single and self.inputs else self.inputs
        if self.parameters is not None:
            self.parameters.check()
        scoring = self.parameters.function_to_apply if self.parameters else None
        contradicts = self.raw_scores and scoring not in (None, "none")
        refuse({"raw_scores": contradicts and f"is true, and `function_to_apply` is {scoring}; give one of them"})
        options = self.encode_options(model)
        if self.parameters is not None:
            options = self.parameters.applied(self, options)
        task = classify(items, options, scoring or ("none" if self.raw_scores else model.scoring))
        if self.prompt_name is not None and any(isinstance(item, Pair) for item in task.inputs):
            raise ValidationError("`prompt_name` is for single texts, not for pairs", param="prompt_name")
        return task

    def to_reply(self, result: Result[Rows], context: RequestContext) -> list[Any]:
        """Returns `[{label, score}]` for a single input, or a list of such lists."""
        found = labelled(result.rows, context.model.labels)
        if self.parameters is not None:
            return [labels[: self.parameters.num_labels] for labels in found]
        return found[0] if self.is_single else found


ROUTES = (
    Route(
        "POST",
        "/predict",
        "labels and scores of texts and pairs of texts, in TEI's shape; `raw_scores`",
        PredictRequest,
        example={"inputs": [["what grows", "a tree"], ["what grows", "a stone"]]},
        reply=any_of(LABELS, array_of(LABELS)),
        by_fields=True,
        default_for=(Kind.CLASSIFIER, Kind.RERANKER),
    ),
)
