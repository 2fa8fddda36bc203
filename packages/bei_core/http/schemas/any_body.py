"""Paths that take the bodies of other routes, one or several: of Hugging Face's clients, SageMaker and Vertex AI."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bei_core.errors import EmptyInputError
from bei_core.http.json_schema import ANY, array_of, object_of
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import Named, RequestContext, convert
from bei_core.metrics import Timings


class VertexRequest(Named, kw_only=True):
    """`POST /vertex`: bodies of other routes, of any kind."""

    instances: list[Any]


async def vertex(call: Call) -> dict[str, Any]:
    """`POST /vertex`: several bodies, each for the route that its fields fit; an error of one is the error of all."""
    body: VertexRequest = call.body
    if not body.instances:
        raise EmptyInputError("`instances` cannot be empty", param="instances")
    call.service.model.check_num_inputs(len(body.instances))
    timings = [Timings() for _ in body.instances]
    parts = zip(body.instances, timings, strict=True)
    tasks = [asyncio.ensure_future(_answer(call, instance, each)) for instance, each in parts]
    try:
        predictions = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    _add(call.timings, timings)
    return {"predictions": predictions}


async def _answer(call: Call, instance: object, timings: Timings) -> object:
    """The reply of the route that an instance is for."""
    schema: Any = call.route_of(instance, call.service).schema
    body = convert(instance, schema)
    model = call.service.model
    model.check_kind(body.kinds)
    task = body.to_task(model)
    result = await call.service.run(task, deadline=call.deadline, priority=call.priority, timings=timings)
    return body.to_reply(result, RequestContext(model, call.request_id))


def _add(total: Timings, parts: Sequence[Timings]) -> None:
    """Sets `total` to the timings of parts that ran side by side; only one of them is tokenized at a time."""
    total.num_inputs = sum(part.num_inputs for part in parts)
    total.num_characters = sum(part.num_characters for part in parts)
    total.num_tokens = sum(part.num_tokens for part in parts)
    total.tokenization_s = sum(part.tokenization_s for part in parts)
    total.queue_s = max(part.queue_s for part in parts)
    total.inference_s = max(part.inference_s for part in parts)


ROUTES = (
    Route(
        "POST",
        "/",
        "a body of another route, which its fields decide (Hugging Face's InferenceClient, SageMaker)",
        reply=ANY,
        aliases=("/invocations",),
        takes_any=True,
    ),
    Route(
        "POST",
        "/vertex",
        "several such bodies at once, under `instances` (Vertex AI)",
        VertexRequest,
        vertex,
        object_of(predictions=array_of(ANY)),
    ),
)
