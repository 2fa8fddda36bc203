"""The routes: each reads a body, runs a task, shapes the reply."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from bei_core import metrics
from bei_core.http import requests, responses
from bei_core.http.requests import DecodeRequest, EmbeddingsRequest, EmbedRequest, SimilarityRequest, TokenizeRequest
from bei_core.http.responses import json_response, result_response
from bei_core.http.scored import ClassifyRequest, PredictRequest, RerankRequest, labelled
from bei_core.metrics import Timings
from bei_core.service import Reply, Service
from bei_core.spec import Pooling
from bei_core.tasks import Rows, Task

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Call:
    """One request on its way through a route."""

    service: Service
    request: Request
    body: bytes
    timings: Timings
    deadline: float | None  # on time.monotonic's clock
    priority: str

    async def run(self, task: Task[ResultT]) -> Reply[ResultT]:
        """The task's result."""
        return await self.service.run(task, deadline=self.deadline, priority=self.priority, timings=self.timings)


Handler: TypeAlias = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path."""

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    summary: str
    body: type[msgspec.Struct] | None = None
    inputs: str = "inputs"  # the field of the body that is encoded
    openai: bool = False  # whether its errors have OpenAI's shape
    public: bool = False  # whether it is served without a key


async def openai_embeddings(call: Call) -> Response:
    """`POST /v1/embeddings`."""
    body = requests.decode(call.body, EmbeddingsRequest)
    reply = await call.run(body.task(call.service))
    name = body.model if body.model and body.model != "not-required" else call.service.name
    value = responses.openai_embeddings(reply, name, as_base64=body.encoding_format == "base64")
    return result_response(value, call.service, reply.timings)


async def embed(call: Call) -> Response:
    """`POST /embed`."""
    body = requests.decode(call.body, EmbedRequest)
    reply = await call.run(body.task(call.service))
    return result_response(np.ascontiguousarray(reply.rows), call.service, reply.timings)


async def similarity(call: Call) -> Response:
    """`POST /similarity`: cosine similarities of one sentence to others."""
    body = requests.decode(call.body, SimilarityRequest)
    reply = await call.run(body.task(call.service))
    return result_response(reply.rows[1:] @ reply.rows[0], call.service, reply.timings)


async def predict(call: Call) -> Response:
    """`POST /predict`."""
    body = requests.decode(call.body, PredictRequest)
    reply = await call.run(body.task(call.service))
    results = labelled(reply, call.service.labels)
    return result_response(results[0] if body.is_single else results, call.service, reply.timings)


async def classify(call: Call) -> Response:
    """`POST /classify`."""
    body = requests.decode(call.body, ClassifyRequest)
    reply = await call.run(body.task(call.service))
    data = labelled(reply, call.service.labels)
    return result_response(_list_object(call, "classify", data, reply), call.service, reply.timings)


async def rerank(call: Call) -> Response:
    """`POST /rerank`: TEI's array for `texts`, Cohere's and Jina's object for `documents`."""
    body = requests.decode(call.body, RerankRequest)
    reply = await call.run(body.task(call.service))
    if body.documents is None:
        return result_response(body.tei_reply(reply), call.service, reply.timings)
    value = body.cohere_reply(reply, responses.request_id(call.request), body.model or call.service.name)
    return result_response(value, call.service, reply.timings)


async def tokenize(call: Call) -> Response:
    """`POST /tokenize`."""
    body = requests.decode(call.body, TokenizeRequest)
    prompt = call.service.encoding(prompt_name=body.prompt_name).prompt if body.prompt_name else None
    texts = [(prompt or "") + text for text in requests.texts_of(body.inputs)]
    call.service.check_batch(texts)
    tokenizer, special = call.service.tokenizer, body.add_special_tokens
    size = sum(map(len, texts))
    found = await tokenizer.apart(size, lambda: [tokenizer.spans(text, add_special_tokens=special) for text in texts])
    return json_response([responses.tokens(spans) for spans in found])


async def decode(call: Call) -> Response:
    """`POST /decode`."""
    body = requests.decode(call.body, DecodeRequest)
    tokenizer, lists, skip = call.service.tokenizer, body.lists(), body.skip_special_tokens
    size = sum(map(len, lists))
    texts = await tokenizer.apart(size, lambda: [tokenizer.decode(ids, skip_special_tokens=skip) for ids in lists])
    return json_response(texts)


async def health(call: Call) -> Response:
    """`GET /health`: 200 where the model answers."""
    await call.service.check()
    return Response(status_code=200)


async def live(call: Call) -> Response:
    """`GET /health/live`: 200 where the process answers."""
    return Response(status_code=200)


async def info(call: Call) -> Response:
    """`GET /info`."""
    return json_response(_info(call.service))


async def models(call: Call) -> Response:
    """`GET /v1/models`."""
    model = {"id": call.service.name, "object": "model", "created": _STARTED, "owned_by": "bei"}
    return json_response({"object": "list", "data": [model]})


async def scrape(call: Call) -> Response:
    """`GET /metrics`."""
    return Response(call.service.metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})


# Where Hugging Face's InferenceClient and SageMaker send every body; `shapes` says which route it is for.
BY_SHAPE = frozenset({"/", "/invocations"})

_STARTED = int(time.time())


def _list_object(call: Call, kind: str, data: list[Any], reply: Reply[Rows]) -> dict[str, Any]:
    """OpenAI's and Infinity's list object around results."""
    return {
        "id": responses.request_id(call.request),
        "object": kind,
        "created": int(time.time()),
        "model": call.service.name,
        "data": data,
        "usage": responses.usage(reply.timings),
    }


ROUTES = (
    Route("POST", "/v1/embeddings", openai_embeddings, "OpenAI embeddings", EmbeddingsRequest, "input", openai=True),
    Route("POST", "/embeddings", openai_embeddings, "OpenAI embeddings", EmbeddingsRequest, "input", openai=True),
    Route("POST", "/embed", embed, "Dense vectors", EmbedRequest),
    Route("POST", "/similarity", similarity, "Cosine similarity of a sentence to others", SimilarityRequest),
    Route("POST", "/predict", predict, "Labels and scores of texts, or scores of pairs", PredictRequest),
    Route("POST", "/classify", classify, "Labels and scores of texts", ClassifyRequest, "input", openai=True),
    Route("POST", "/rerank", rerank, "Texts by relevance to a query", RerankRequest, "texts"),
    Route("POST", "/v1/rerank", rerank, "Documents by relevance to a query", RerankRequest, "documents", openai=True),
    Route("POST", "/v2/rerank", rerank, "Documents by relevance to a query", RerankRequest, "documents", openai=True),
    Route("POST", "/tokenize", tokenize, "Tokens of texts", TokenizeRequest),
    Route("POST", "/decode", decode, "Texts of tokens", DecodeRequest, "ids"),
    Route("GET", "/v1/models", models, "What is served", openai=True),
    Route("GET", "/models", models, "What is served", openai=True),
    Route("GET", "/info", info, "What is served, and its limits"),
    Route("GET", "/health", health, "Whether the model answers", public=True),
    Route("GET", "/health/ready", health, "Whether the model answers", public=True),
    Route("GET", "/health/live", live, "Whether the process answers", public=True),
    Route("GET", "/ping", health, "Whether the model answers (SageMaker)", public=True),
    Route("GET", "/metrics", scrape, "Prometheus metrics", public=True),
)


def _facts(service: Service) -> Mapping[str, Any]:
    """What a model's kind is known by, as TEI's `model_type` says it."""
    if service.kind == "embedding":
        return {"pooling": "+".join(mode for m in service.spec.modules if isinstance(m, Pooling) for mode in m.modes)}
    names = {str(index): label for index, label in enumerate(service.labels)}
    return {"id2label": names, "label2id": {label: int(index) for index, label in names.items()}}


def _info(service: Service) -> Mapping[str, Any]:
    settings = service.settings
    return {
        "model_id": service.name,
        "model_sha": service.revision,
        "model_dtype": service.engine.precision,
        "model_type": {service.kind: _facts(service)},
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": service.tokenizer.max_seq_len,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_batch_requests": settings.max_batch_requests,
        "max_client_batch_size": settings.max_client_batch_size,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": settings.tokenization_workers or 1,
        "version": bei_version(),
        "engine": service.engine.name,
        "compute_type": service.engine.compute_type,
        "dimensions": service.engine.row_width,
        "prompts": sorted(service.spec.prompts),
    }


def bei_version() -> str:
    """The installed version of bei-core; `0` where it runs from a folder on the path, as under Truss."""
    try:
        return version("bei-core")
    except PackageNotFoundError:
        return "0"
