"""What Hugging Face's clients say to a classifier, which they take for a pipeline of transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec

from bei_core.http.scored import PredictRequest, labelled
from bei_core.serving.service import Reply, Service
from bei_core.tasks import Classify, Rows


class LabelParameters(msgspec.Struct):
    """What Hugging Face's clients send with a text."""

    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None


class PipelineRequest(PredictRequest):
    """`POST /predict`; with `parameters` the reply is always a list of lists, as those clients expect."""

    parameters: LabelParameters | None = None

    def task(self, service: Service) -> Classify:
        """The task; raises a RequestError for inputs that cannot be."""
        task = super().task(service)
        function = self.parameters.function_to_apply if self.parameters else None
        return replace(task, scoring=function) if function else task

    def found(self, reply: Reply[Rows], service: Service) -> list[Any]:
        """The body of the reply."""
        results = labelled(reply, service.labels)
        if self.parameters is not None:
            return [best[: self.parameters.top_k] for best in results]
        return results[0] if self.is_single else results
