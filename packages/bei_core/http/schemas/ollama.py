"""Ollama's API: `/api/embed`, `/api/embeddings`, `/api/tags`, `/api/show`, `/api/version`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import msgspec

from bei_core.errors import NotFoundError
from bei_core.http.error_format import OLLAMA
from bei_core.http.json_schema import INTEGER, NUMBER, OBJECT, STRING, array_of, object_of
from bei_core.http.route import Call, Route
from bei_core.http.schemas.common import Common, Named, RequestContext, texts_of
from bei_core.http.schemas.vectors import as_lists
from bei_core.http.version import bei_version
from bei_core.models.kind import Kind
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result, Service
from bei_core.tasks import Embed, EncodeOptions, Rows, check_dimensions

_UNKNOWN_TIME = "1970-01-01T00:00:00Z"  # stands for the time of a model's last change; clients parse it
_NS = 1_000_000_000


class Options(msgspec.Struct):
    """The options of a model at Ollama that change an embedding; the others are for sampling and memory."""

    num_ctx: Annotated[int, msgspec.Meta(ge=1)] | None = None  # tokens of an input, special ones included


class OllamaBody(Common, kw_only=True):
    """What both routes for embeddings share; `keep_alive` means nothing here, as the model stays in memory."""

    kinds = (Kind.EMBEDDING,)

    model: str
    options: Options | None = None

    def __post_init__(self) -> None:
        """Removes the tag that Ollama's clients may add to a name."""
        self.model = self.model.removesuffix(":latest")

    def limited_options(self, model: ServedModel) -> EncodeOptions:
        """Returns the options to tokenize the texts."""
        return replace(self.encode_options(model), max_tokens=self.options.num_ctx if self.options else None)


class OllamaEmbedRequest(OllamaBody, kw_only=True):
    """`POST /api/embed`."""

    input: str | list[str]
    dimensions: int | None = None  # 0: the model's own

    def to_task(self, model: ServedModel) -> Embed:
        """Returns the task."""
        if self.dimensions:
            check_dimensions(self.dimensions, model.row_width)  # before any work
        return Embed(texts_of(self.input), self.limited_options(model), dimensions=self.dimensions or None)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """Returns the vectors, f32[N, D] of length 1; times are in nanoseconds."""
        return {
            "model": self.model,
            "embeddings": as_lists(result.rows, "float"),
            "total_duration": int(result.timings.total_s * _NS),
            "load_duration": 0,
            "prompt_eval_count": result.timings.num_tokens,
        }


class OllamaEmbeddingsRequest(OllamaBody, kw_only=True):
    """`POST /api/embeddings`, which `/api/embed` replaces."""

    prompt: str

    def to_task(self, model: ServedModel) -> Embed:
        """Returns the task. Unlike those of `/api/embed`, the vector keeps the length that the model gives it."""
        return Embed([self.prompt], self.limited_options(model), normalize=False)

    def to_reply(self, result: Result[Rows], context: RequestContext) -> dict[str, Any]:
        """Returns the one vector, f32[D]."""
        return {"embedding": as_lists(result.rows, "float")[0]}


class ShowRequest(Named, kw_only=True):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None  # of older clients

    def __post_init__(self) -> None:
        """Takes either name, without the tag that Ollama's clients may add."""
        self.model = (self.model or self.name or "").removesuffix(":latest")


async def tags(call: Call) -> dict[str, Any]:
    """Answers `GET /api/tags` with the served models."""
    return {"models": [_model(service) for service in call.names.services]}


async def show(call: Call) -> dict[str, Any]:
    """Answers `POST /api/show` with one served model. Raises NotFoundError for a model that is not served."""
    body: ShowRequest = call.body
    service = call.names.get(body.model or "")
    if service is None:
        raise NotFoundError(f"model '{body.model}' not found", param="model")
    family = _family(service)
    sizes = {"context_length": service.engine.max_seq_len, "embedding_length": service.model.row_width}
    info = {"general.architecture": family, **{f"{family}.{name}": size for name, size in sizes.items()}}
    facts = {"modelfile": "", "parameters": "", "template": "", "modified_at": _UNKNOWN_TIME, "model_info": info}
    capabilities = ["embedding"] if service.model.kind is Kind.EMBEDDING else []
    return {"details": _details(service), "capabilities": capabilities, **facts}


async def version(call: Call) -> dict[str, Any]:
    """Answers `GET /api/version` with the version of BEI."""
    return {"version": bei_version()}


def _model(service: Service) -> dict[str, Any]:
    """Returns the entry of one model in `/api/tags`."""
    named = {"name": service.name, "model": service.name}
    return {
        **named,
        "modified_at": _UNKNOWN_TIME,
        "size": 0,
        "digest": service.revision or "",
        "details": _details(service),
    }


def _details(service: Service) -> dict[str, Any]:
    """Returns the `details` of a model."""
    family = {"family": _family(service), "families": [_family(service)]}
    sizes = {"parameter_size": "", "quantization_level": service.engine.precision}
    return {"parent_model": "", "format": service.engine.name, **family, **sizes}


def _family(service: Service) -> str:
    """Returns the `model_type` of config.json, such as bert; a model without one has that of its kind."""
    return str(service.spec.config.get("model_type") or service.model.kind.value)


_VECTOR = array_of(NUMBER)

ROUTES = (
    Route(
        "POST",
        "/api/embed",
        "Ollama: `input`, `truncate`, `dimensions`, `options.num_ctx`",
        OllamaEmbedRequest,
        example={"model": "all-MiniLM-L6-v2", "input": ["a tree grows"]},
        reply=object_of(
            model=STRING,
            embeddings=array_of(_VECTOR),
            total_duration=INTEGER,
            load_duration=INTEGER,
            prompt_eval_count=INTEGER,
        ),
        errors=OLLAMA,
        inputs="input",
    ),
    Route(
        "POST",
        "/api/embeddings",
        "Ollama's older route: one `prompt`, and a vector that is not normalised",
        OllamaEmbeddingsRequest,
        example={"model": "all-MiniLM-L6-v2", "prompt": "a tree grows"},
        reply=object_of(embedding=_VECTOR),
        errors=OLLAMA,
        inputs="prompt",
    ),
    Route(
        "GET",
        "/api/tags",
        "Ollama: what is served",
        answer=tags,
        reply=object_of(models=array_of(OBJECT)),
        errors=OLLAMA,
    ),
    Route(
        "POST",
        "/api/show",
        "Ollama: one of the models",
        ShowRequest,
        show,
        OBJECT,
        errors=OLLAMA,
        example={"model": "all-MiniLM-L6-v2"},
    ),
    Route("GET", "/api/version", "the version of BEI", answer=version, reply=object_of(version=STRING), errors=OLLAMA),
)
