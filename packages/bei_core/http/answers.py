"""The routes that are not one task of a model: what is served, health, metrics, tokens, several bodies at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bei_core import metrics
from bei_core.errors import EmptyInputError
from bei_core.http.replies import Plain
from bei_core.http.route import Call
from bei_core.http.schemas.common import Body, RequestContext, convert, texts_of
from bei_core.http.schemas.tei import DecodeRequest, TokenizeRequest
from bei_core.http.schemas.vertex import VertexRequest
from bei_core.http.shapes import SCHEMAS, default_path, path_of
from bei_core.http.version import bei_version
from bei_core.metrics import Timings
from bei_core.models.kind import Kind
from bei_core.models.spec import Pooling
from bei_core.serving.service import Service

_STARTED = int(time.time())


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


async def tokenize(call: Call) -> list[Any]:
    """`POST /tokenize`: `[[{id, text, special, start, stop}]]`."""
    body: TokenizeRequest = call.body
    prompt = call.service.model.prompt(body.prompt_name) if body.prompt_name else ""
    texts = [prompt + text for text in texts_of(body.inputs)]
    call.service.model.check_num_inputs(len(texts))
    tokenizer, special = call.service.tokenizer, body.add_special_tokens
    size = sum(map(len, texts))
    found = await tokenizer.offload(size, lambda: [tokenizer.spans(text, add_special_tokens=special) for text in texts])
    names = ("id", "text", "special", "start", "stop")
    return [[dict(zip(names, span, strict=True)) for span in spans] for spans in found]


async def decode(call: Call) -> list[str]:
    """`POST /decode`: the text of each list of token ids."""
    body: DecodeRequest = call.body
    tokenizer, lists, skip = call.service.tokenizer, body.lists(), body.skip_special_tokens
    size = sum(map(len, lists))
    return await tokenizer.offload(size, lambda: [tokenizer.decode(ids, skip_special_tokens=skip) for ids in lists])


async def health(call: Call) -> dict[str, float]:
    """`GET /health`: 200 if every model answers."""
    for service in call.services:
        await service.check()
    return {"unix": time.time()}  # read by Infinity's client


async def live(call: Call) -> Plain:
    """`GET /health/live`: 200 if the process answers."""
    return Plain(b"")


async def info(call: Call) -> Mapping[str, Any]:
    """`GET /info`: of the model that the query parameter `model` names, else of the first."""
    service = call.service
    settings = service.settings
    return {
        "model_id": service.name,
        "model_sha": service.revision,
        "model_dtype": service.engine.precision,
        "model_type": _model_type(service),
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": service.tokenizer.max_seq_len,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_batch_requests": settings.max_batch_requests,
        "max_client_batch_size": settings.max_client_batch_size,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": settings.tokenization_workers or 1,
        "version": bei_version(),
        "engine": service.engine.name,
        "compute_type": service.model.compute_type,
        "kind": service.model.kind.value,
        "dimensions": service.engine.row_width or service.engine.token_width,
        "prompts": sorted(service.spec.prompts),
    }


async def models(call: Call) -> dict[str, Any]:
    """`GET /v1/models`."""
    # Infinity's client accepts no other owner and requires `stats`; OpenAI's client accepts any.
    facts = {"object": "model", "created": _STARTED, "owned_by": "infinity", "stats": {}}
    return {"object": "list", "data": [{"id": service.name, **facts} for service in call.services]}


async def scrape(call: Call) -> Plain:
    """`GET /metrics`."""
    return Plain(call.service.metrics.render(), metrics.CONTENT_TYPE)


async def _answer(call: Call, instance: object, timings: Timings) -> object:
    """The reply of the route that an instance is for."""
    schema = SCHEMAS[path_of(instance, default_path(call.service))]
    body: Body = convert(instance, schema)
    model = call.service.model
    model.check_kind(body.kinds)
    task = body.to_task(model)
    result = await call.service.run(task, deadline=call.deadline, priority=call.priority, timings=timings)
    return body.to_reply(result, RequestContext(model, call.request_id))


def _model_type(service: Service) -> Mapping[str, Any]:
    """The `model_type` of TEI's `/info`."""
    kind, labels = service.model.kind, service.model.labels
    if labels:
        names = {str(index): label for index, label in enumerate(labels)}
        return {kind.tei_type: {"id2label": names, "label2id": {label: index for index, label in enumerate(labels)}}}
    modes = [mode for module in service.spec.modules if isinstance(module, Pooling) for mode in module.modes]
    return {kind.tei_type: {"pooling": "splade" if kind is Kind.SPARSE else "+".join(modes) or "none"}}


def _add(total: Timings, parts: Sequence[Timings]) -> None:
    """Sets `total` to the timings of parts that ran side by side; only one of them is tokenized at a time."""
    total.num_inputs = sum(part.num_inputs for part in parts)
    total.num_characters = sum(part.num_characters for part in parts)
    total.num_tokens = sum(part.num_tokens for part in parts)
    total.tokenization_s = sum(part.tokenization_s for part in parts)
    total.queue_s = max(part.queue_s for part in parts)
    total.inference_s = max(part.inference_s for part in parts)
