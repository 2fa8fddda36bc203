"""Paths that take the bodies of other routes, for Hugging Face's clients, SageMaker and Vertex AI."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bei_core.errors import EmptyInputError, ValidationError
from bei_core.http.json_schema import ANY, array_of, object_of
from bei_core.http.replies import BYTES_PER_NUMBER, Deferred, num_numbers
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import Body, Named, RequestContext, convert, refuse
from bei_core.metrics import Timings
from bei_core.serving.service import Result
from bei_core.tasks import Compute, Task

_MAX_RUNS = 32  # requests that one body of /vertex has in progress at a time


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
    results = await _run_all(call, [task for _, task in bodies])
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
        if call.names.chosen(body.model) not in (None, call.service):
            message = f"an instance names the model {body.model!r}; name one model for all, beside `instances`"
            raise ValidationError(message, param="model")
        model.check_kind(body.kinds)
        found.append((body, body.to_task(model)))
        count += len(found[-1][1].inputs)
        model.check_num_inputs(count)
    return found


async def _run_all(call: Call, tasks: Sequence[Task[Any]]) -> list[Result[Any]]:
    """Returns the result of each task, and adds their timings to those of the call.

    Tasks that differ only in their inputs and in what follows the model run as one request: a thousand requests that
    begin or end in one turn of the event loop hold it up for 70 ms. At most _MAX_RUNS requests run at a time.
    """
    groups: dict[object, list[int]] = {}
    for place, task in enumerate(tasks):
        alone = task.options.chunk  # the result does not say how many tokens each of its inputs has
        groups.setdefault(place if alone else (task.output, task.options), []).append(place)
    waiting, timings, results = iter(groups.values()), list[Timings](), dict[int, Result[Any]]()

    async def run() -> None:
        for places in waiting:
            timings.append(Timings())
            parts = [tasks[place] for place in places]
            task = parts[0] if len(parts) == 1 else _joint(parts)
            result = await call.service.run(
                task, deadline=call.deadline, priority=call.priority, timings=timings[-1], reserve=call.reserve
            )
            found = [result] if len(parts) == 1 else await asyncio.to_thread(_split, result, parts)
            results.update(zip(places, found, strict=True))

    runs = [asyncio.ensure_future(run()) for _ in range(min(len(groups), _MAX_RUNS))]
    try:
        await asyncio.gather(*runs)
    finally:
        for each in runs:
            each.cancel()
        call.timings.is_counted = any(each.is_counted for each in timings)
    _add(call.timings, timings)
    return [results[place] for place in range(len(tasks))]


def _joint(tasks: Sequence[Task[Any]]) -> Compute:
    """Returns one task for the inputs of several tasks with the same options and output."""
    return Compute([text for task in tasks for text in task.inputs], tasks[0].options, tasks[0].output)


def _split(joint: Result[Any], tasks: Sequence[Task[Any]]) -> list[Result[Any]]:
    """Returns the result of each task from that of their `_joint`. Raises ValidationError if an option does not fit."""
    found, start = list[Result[Any]](), 0
    for task in tasks:
        part = slice(start, start + len(task.inputs))
        tokens, start = joint.tokens[part], part.stop
        timings = replace(joint.timings, num_inputs=len(tokens), num_tokens=sum(map(len, tokens)))
        found.append(Result(task.finish(joint.rows[part]), timings, tokens))
    return found


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
