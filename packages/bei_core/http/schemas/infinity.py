"""`/classify`: Infinity and vLLM have this path with different replies."""

from __future__ import annotations

from typing import Any, ClassVar

from bei_core.http.error_format import OPENAI
from bei_core.http.json_schema import INTEGER, NUMBER, STRING, any_of, array_of, object_of
from bei_core.http.route import Route
from bei_core.http.schemas import vllm
from bei_core.http.schemas.common import LABELS, USAGE, Input, RequestContext, inputs_of, labelled
from bei_core.http.schemas.vllm_options import VllmOptions
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import Classify, Rows


class ClassifyRequest(VllmOptions, kw_only=True):
    """`POST /classify`: the reply is vLLM's if the body has a field of vLLM's, else Infinity's."""

    kinds = (Kind.CLASSIFIER, Kind.RERANKER)
    is_of_vllm: ClassVar[bool] = False

    input: Input
    model: str | None = None
    raw_scores: bool | None = None  # Infinity's

    def to_task(self, model: ServedModel) -> Classify:
        """Returns the task."""
        scoring = "none" if self.raw_scores or not self.activates else model.scoring
        return Classify(inputs_of(self.input), self.encode_options(model), scoring)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """Returns a list object: `[{label, score}]` per text, or in vLLM's format the best label and all scores."""
        labels = context.model.labels
        if self.is_of_vllm or (self.is_vllm and self.raw_scores is None):
            return vllm.list_object(vllm.classes(result.rows, labels), result, context)
        return vllm.list_object(labelled(result.rows, labels), result, context, "classify")


class VllmClassifyRequest(ClassifyRequest):
    """`POST /vllm/classify`: the reply is vLLM's."""

    is_of_vllm = True


_CLASS = object_of(index=INTEGER, label=STRING, probs=array_of(NUMBER), num_classes=INTEGER)
_REPLY = object_of(
    id=STRING,
    object=STRING,
    created=INTEGER,
    model=STRING,
    data=any_of(array_of(LABELS), array_of(_CLASS)),
    usage=USAGE,
)

ROUTES = (
    Route(
        "POST",
        "/classify",
        "labels and scores of texts, in the shape of Infinity or vLLM as [the body's fields](#classification) say",
        ClassifyRequest,
        example={"input": ["a tree grows"]},
        reply=_REPLY,
        errors=OPENAI,
        inputs="input",
    ),
    Route(
        "POST",
        "/vllm/classify",
        "the same, in vLLM's shape",
        VllmClassifyRequest,
        example={"input": ["a tree grows"]},
        reply=_REPLY,
        errors=OPENAI,
        inputs="input",
    ),
)
