"""The routes: each reads a body, runs a task, shapes the reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from bei_core import metrics
from bei_core.errors import EmptyInputError
from bei_core.http import requests, responses
from bei_core.http.pipelines import PipelineRequest
from bei_core.http.requests import DecodeRequest, EmbeddingsRequest, EmbedRequest, SimilarityRequest, TokenizeRequest
from bei_core.http.responses import json_response, result_response
from bei_core.http.scored import ClassifyRequest, RerankRequest, labelled
from bei_core.http.shapes import VertexRequest, default_path, path_of
from bei_core.http.tokenwise import EmbedAllRequest, EmbedSparseRequest, PredictTokensRequest, terms, vectors
from bei_core.metrics import Timings
from bei_core.models.spec import Pooling
from bei_core.serving.service import Reply, Service
from bei_core.tasks import Rows, Task

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Call:
    """One request on its way through a route."""

    service: Service  # the model that was chosen
    services: tuple[Service, ...]  # all of the server's
    request: Request
    body: bytes
    timings: Timings
    deadline: float | None  # on time.monotonic's clock
    priority: str

    async def run(self, task: Task[ResultT]) -> Reply[ResultT]:
        """The task's result."""
        return await self.service.run(task, deadline=self.deadline, priority=self.priority, timings=self.timings)


Handler: TypeAlias = Callable[[Call], Awaitable[Response]]
Answer: TypeAlias = Callable[[Call], Awaitable[Reply[Any]]]  # the value of a body, and where the time went


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
    kinds: tuple[str, ...] = ()  # the kinds of model that it is for; none: any

    def suits(self, service: Service) -> bool:
        """Whether a model does what the route asks."""
        return not self.kinds or service.kind in self.kinds or ("reranker" in self.kinds and service.ranks)


def answered(answer: Answer) -> Handler:
    """The handler that replies with an answer."""

    async def respond(call: Call) -> Response:
        reply = await answer(call)
        return result_response(reply.rows, call.service, reply.timings)

    return respond


async def openai_embeddings(call: Call) -> Reply[Any]:
    """`POST /v1/embeddings`."""
    body = requests.decode(call.body, EmbeddingsRequest)
    reply = await call.run(body.task(call.service))
    name = body.model if body.model and body.model != "not-required" else call.service.name
    value = responses.openai_embeddings(reply, name, as_base64=body.encoding_format == "base64")
    return Reply(value, reply.timings)


async def embed(call: Call) -> Reply[Any]:
    """`POST /embed`."""
    body = requests.decode(call.body, EmbedRequest)
    reply = await call.run(body.task(call.service))
    return Reply(np.ascontiguousarray(reply.rows), reply.timings)


async def embed_all(call: Call) -> Reply[Any]:
    """`POST /embed_all`: a vector for every token."""
    body = requests.decode(call.body, EmbedAllRequest)
    reply = await call.run(body.task(call.service))
    return Reply(vectors(reply.rows), reply.timings)


async def embed_sparse(call: Call) -> Reply[Any]:
    """`POST /embed_sparse`."""
    body = requests.decode(call.body, EmbedSparseRequest)
    reply = await call.run(body.task(call.service))
    return Reply(terms(reply.rows), reply.timings)


async def similarity(call: Call) -> Reply[Any]:
    """`POST /similarity`: cosine similarities of one sentence to others."""
    body = requests.decode(call.body, SimilarityRequest)
    reply = await call.run(body.task(call.service))
    return Reply(reply.rows[1:] @ reply.rows[0], reply.timings)


async def predict(call: Call) -> Reply[Any]:
    """`POST /predict`."""
    body = requests.decode(call.body, PipelineRequest)
    reply = await call.run(body.task(call.service))
    return Reply(body.found(reply, call.service), reply.timings)


async def predict_tokens(call: Call) -> Reply[Any]:
    """`POST /predict_tokens`: as Baseten; where Hugging Face's clients ask, as transformers' pipeline."""
    body = requests.decode(call.body, PredictTokensRequest)
    reply = await call.run(body.task(call.service))
    as_pipeline = body.parameters is not None or call.request.scope.get("path") in BY_SHAPE
    found = await body.found(reply, call.service, as_pipeline=as_pipeline)
    return Reply(found, reply.timings)


async def classify(call: Call) -> Reply[Any]:
    """`POST /classify`."""
    body = requests.decode(call.body, ClassifyRequest)
    reply = await call.run(body.task(call.service))
    data = labelled(reply, call.service.labels)
    return Reply(_list_object(call, "classify", data, reply), reply.timings)


async def rerank(call: Call) -> Reply[Any]:
    """`POST /rerank`: TEI's array for `texts`, Cohere's and Jina's object for `documents`."""
    body = requests.decode(call.body, RerankRequest)
    reply = await call.run(body.task(call.service))
    if body.documents is None:
        return Reply(body.tei_reply(reply), reply.timings)
    value = body.cohere_reply(reply, responses.request_id(call.request), body.model or call.service.name)
    return Reply(value, reply.timings)


async def vertex(call: Call) -> Reply[Any]:
    """`POST /vertex`: several bodies at once, each for the route that takes such a body; one's error is everyone's."""
    bodies = requests.decode(call.body, VertexRequest).instances
    if not bodies:
        raise EmptyInputError("`instances` cannot be empty", param="instances")
    call.service.check_batch(bodies)
    calls = [replace(call, body=bytes(body), timings=Timings()) for body in bodies]
    tasks = [asyncio.ensure_future(_by_shape(each)) for each in calls]
    try:
        replies = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    _add(call.timings, [reply.timings for reply in replies])
    return Reply({"predictions": [reply.rows for reply in replies]}, call.timings)


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
    """`GET /health`: 200 where every model answers."""
    for service in call.services:
        await service.check()
    return json_response({"unix": time.time()})  # Infinity's client reads it


async def live(call: Call) -> Response:
    """`GET /health/live`: 200 where the process answers."""
    return Response(status_code=200)


async def info(call: Call) -> Response:
    """`GET /info`: of the model that the query's `model` names, else of the first."""
    return json_response(_info(call.service))


async def models(call: Call) -> Response:
    """`GET /v1/models`."""
    # Infinity's client knows no other owner, and asks for `stats`; OpenAI's takes any.
    facts = {"object": "model", "created": _STARTED, "owned_by": "infinity", "stats": {}}
    data = [{"id": service.name, **facts} for service in call.services]
    return json_response({"object": "list", "data": data})


async def scrape(call: Call) -> Response:
    """`GET /metrics`."""
    return Response(call.service.metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})


async def _by_shape(call: Call) -> Reply[Any]:
    """What the route that takes such a body answers."""
    return await _ANSWERS[path_of(call.body, default_path(call.service))](call)


def _add(total: Timings, parts: Sequence[Timings]) -> None:
    """Makes `total` that of parts which ran side by side."""
    total.num_inputs = sum(part.num_inputs for part in parts)
    total.num_characters = sum(part.num_characters for part in parts)
    total.num_tokens = sum(part.num_tokens for part in parts)
    total.tokenization_s = sum(part.tokenization_s for part in parts)  # which no two do at a time
    total.queue_s = max(part.queue_s for part in parts)
    total.inference_s = max(part.inference_s for part in parts)


# What a body may be for where its fields decide.
_ANSWERS: Mapping[str, Answer] = {
    "/v1/embeddings": openai_embeddings,
    "/embed": embed,
    "/embed_all": embed_all,
    "/embed_sparse": embed_sparse,
    "/similarity": similarity,
    "/predict": predict,
    "/predict_tokens": predict_tokens,
    "/rerank": rerank,
}

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


def _model(
    path: str,
    answer: Answer,
    summary: str,
    body: type[msgspec.Struct],
    kinds: Sequence[str],
    *,
    inputs: str = "inputs",
    openai: bool = False,
) -> Route:
    """A route that the model answers."""
    return Route("POST", path, answered(answer), summary, body, inputs, openai=openai, kinds=tuple(kinds))


_EMBEDS = ["embedding"]
_SCORES = ["classifier", "reranker"]
_RANKS = ["reranker"]

ROUTES = (
    _model(
        "/v1/embeddings",
        openai_embeddings,
        "OpenAI embeddings",
        EmbeddingsRequest,
        _EMBEDS,
        inputs="input",
        openai=True,
    ),
    _model(
        "/embeddings", openai_embeddings, "OpenAI embeddings", EmbeddingsRequest, _EMBEDS, inputs="input", openai=True
    ),
    _model("/embed", embed, "Dense vectors", EmbedRequest, _EMBEDS),
    _model("/embed_all", embed_all, "A vector for every token", EmbedAllRequest, ["late-interaction", *_EMBEDS]),
    _model("/embed_sparse", embed_sparse, "Weights of the vocabulary's terms", EmbedSparseRequest, ["sparse"]),
    _model("/similarity", similarity, "Cosine similarity of a sentence to others", SimilarityRequest, _EMBEDS),
    _model("/predict", predict, "Labels and scores of texts, or scores of pairs", PipelineRequest, _SCORES),
    _model(
        "/predict_tokens", predict_tokens, "Labels of tokens, or entities", PredictTokensRequest, ["token-classifier"]
    ),
    _model("/classify", classify, "Labels and scores of texts", ClassifyRequest, _SCORES, inputs="input", openai=True),
    _model("/rerank", rerank, "Texts by relevance to a query", RerankRequest, _RANKS, inputs="texts"),
    _model("/v1/rerank", rerank, "Documents by relevance", RerankRequest, _RANKS, inputs="documents", openai=True),
    _model("/v2/rerank", rerank, "Documents by relevance", RerankRequest, _RANKS, inputs="documents", openai=True),
    _model("/vertex", vertex, "Several bodies at once", VertexRequest, []),
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


def _model_type(service: Service) -> Mapping[str, Any]:
    """What a model does, in the words that TEI has for it: a token classifier is a classifier, SPLADE a pooling."""
    if service.labels:
        names = {str(index): label for index, label in enumerate(service.labels)}
        kind = "reranker" if service.kind == "reranker" else "classifier"
        return {kind: {"id2label": names, "label2id": {label: int(index) for index, label in names.items()}}}
    modes = [mode for module in service.spec.modules if isinstance(module, Pooling) for mode in module.modes]
    return {"embedding": {"pooling": "splade" if service.kind == "sparse" else "+".join(modes) or "none"}}


def _info(service: Service) -> Mapping[str, Any]:
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
        "compute_type": service.engine.compute_type,
        "kind": service.kind,
        "dimensions": service.engine.row_width or service.engine.token_width,
        "prompts": sorted(service.spec.prompts),
    }


def bei_version() -> str:
    """The installed version of bei-core; `0` where it runs from a folder on the path, as under Truss."""
    try:
        return version("bei-core")
    except PackageNotFoundError:
        return "0"
