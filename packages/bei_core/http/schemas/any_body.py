"""Paths that take the bodies of other routes, for Hugging Face's clients, SageMaker and Vertex AI."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bei_core.errors import EmptyInputError
from bei_core.http.json_schema import ANY, array_of, object_of
from bei_core.http.replies import BYTES_PER_NUMBER, Deferred, num_numbers
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import Body, Named, RequestContext, convert, refuse
from bei_core.metrics import Timings
from bei_core.serving.service import Result
from bei_core.tasks import Task


class VertexRequest(Named, kw_only=True):
    """`POST /vertex`: bodies of other routes, of any kind."""

    instances: list[Any]
    parameters: dict[str, Any] | None = None  # of Vertex AI, for all instances


async def vertex(call: Call) -> Deferred:
    """Answers `POST /vertex`: runs several bodies, each by the route that fits its fields. One error fails all."""
    body: VertexRequest = call.body
    if not body.instances:
        raise EmptyInputError("`instances` cannot be empty", param="instances")
    refuse({"parameters": body.parameters and "is not supported; put the options into each of `instances`"})
    call.service.model.check_num_inputs(len(body.instances))
    bodies = await asyncio.to_thread(_bodies, call) if call.is_large else _bodies(call)
    timings = [Timings() for _ in bodies]
    parts = zip(bodies, timings, strict=True)
    runs = [asyncio.ensure_future(_run(call, task, each)) for (_, task), each in parts]
    try:
        results = await asyncio.gather(*runs)
    finally:
        for run in runs:
            run.cancel()
    _add(call.timings, timings)
    context = RequestContext(call.service.model, call.request_id)

    def make() -> dict[str, Any]:
        replies = [each.to_reply(result, context) for (each, _), result in zip(bodies, results, strict=True)]
        return {"predictions": replies}

    return Deferred(BYTES_PER_NUMBER * sum(num_numbers(result.rows) for result in results), make)


def _bodies(call: Call) -> list[tuple[Body, Task[Any]]]:
    """Returns each instance as the body of its route, with its task. Raises a RequestError."""
    model, found, count = call.service.model, list[tuple[Body, Task[Any]]](), 0
    for instance in call.body.instances:
        schema: Any = call.route_of(instance, call.service).schema
        body: Body = convert(instance, schema)
        model.check_kind(body.kinds)
        found.append((body, body.to_task(model)))
        count += len(found[-1][1].inputs)
        model.check_num_inputs(count)
    return found


async def _run(call: Call, task: Task[Any], timings: Timings) -> Result[Any]:
    return await call.service.run(task, deadline=call.deadline, priority=call.priority, timings=timings)


def _add(total: Timings, parts: Sequence[Timings]) -> None:
    """Sets `total` to the timings of parts that ran concurrently, but were tokenized one after the other."""
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
        example={"inputs": ["a tree grows"]},
        reply=ANY,
        reply_example=[[0.5, -0.5]],
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
        example={"instances": [{"inputs": "a tree grows"}]},
        reply_example={"predictions": [[[0.5, -0.5]]]},
    ),
)
