"""Reply bodies and headers."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from bei_core.errors import MethodNotAllowedError, OverloadedError, RequestError, UnauthorizedError
from bei_core.http import negotiation
from bei_core.metrics import Timings
from bei_core.serving.service import Reply, Service
from bei_core.tasks import Rows

_SHOWN = 1000  # characters of an error's text


def dumps(value: object) -> bytes:
    """JSON; NumPy arrays as lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


class ValueResponse(Response):
    """A reply that is a response from `write` on: once it is known in which format the caller takes it."""

    def __init__(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self._value = value
        self._given = headers

    def write(self, media_type: str) -> None:
        """Makes a response of it."""
        body = negotiation.msgpack(self._value) if media_type == negotiation.MSGPACK else dumps(self._value)
        super().__init__(body, headers=self._given, media_type=media_type)


def json_response(value: object) -> Response:
    """A reply in JSON, or in what else the caller takes."""
    return ValueResponse(value)


def result_response(value: object, service: Service, timings: Timings) -> Response:
    """A reply with the headers that say what computed it and where the time went."""
    return ValueResponse(value, compute_headers(service, timings))


async def finish(response: Response, request: Request) -> None:
    """Gives a reply that is no error the format and the coding that the caller takes."""
    media_type, coding = negotiation.wanted(request.scope["headers"])
    if isinstance(response, ValueResponse):
        response.write(media_type)
    packed = await negotiation.compressed(bytes(response.body), coding) if coding is not None else None
    if packed is not None and coding is not None:
        response.body = packed
        response.headers["content-length"] = str(len(packed))
        response.headers["content-encoding"] = coding
    if packed is not None or media_type != negotiation.JSON:
        response.headers["vary"] = "accept, accept-encoding"


def compute_headers(service: Service, timings: Timings) -> dict[str, str]:
    """TEI's `x-` headers; times in milliseconds, with fractions."""
    total = _ms(timings.total_s)
    return {
        "x-compute-type": service.engine.compute_type,
        "x-compute-time": total,
        "x-compute-characters": str(timings.num_characters),
        "x-compute-tokens": str(timings.num_tokens),
        "x-total-time": total,
        "x-tokenization-time": _ms(timings.tokenization_s),
        "x-queue-time": _ms(timings.queue_s),
        "x-inference-time": _ms(timings.inference_s),
    }


def request_id(request: Request) -> str:
    """The caller's id for this request, or one made for it, which its body and its headers then share."""
    given = request.headers.get("x-baseten-request-id")
    return given or str(request.scope.setdefault("bei.request_id", f"{random.getrandbits(64):016x}"))


def openai_embeddings(reply: Reply[Rows], model: str, *, as_base64: bool) -> dict[str, Any]:
    """The body of `/v1/embeddings`."""
    rows = [_base64(row) for row in reply.rows] if as_base64 else list(np.ascontiguousarray(reply.rows))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "model": model,
        "usage": usage(reply.timings),
    }


def usage(timings: Timings) -> dict[str, int]:
    """What OpenAI's, Jina's and Infinity's bodies say of tokens: after truncation, special ones included."""
    return {"prompt_tokens": timings.num_tokens, "total_tokens": timings.num_tokens}


def tokens(spans: Sequence[tuple[int, str, bool, int | None, int | None]]) -> list[dict[str, Any]]:
    """The tokens of one text in the body of `/tokenize`."""
    return [dict(zip(("id", "text", "special", "start", "stop"), span, strict=True)) for span in spans]


def error_response(error: RequestError, *, openai_shape: bool, inputs: str = "inputs") -> Response:
    """The one place where an error becomes a reply: OpenAI's shape, or TEI's.

    `inputs` is what the route's body calls its inputs; below HTTP they are called that and nothing else.
    """
    message, param = error.message, error.param
    if param == "inputs":
        message, param = message.replace("`inputs`", f"`{inputs}`"), inputs
    message = message if len(message) <= _SHOWN else message[:_SHOWN] + "…"  # it may repeat what the caller sent
    headers = {}
    if isinstance(error, OverloadedError):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowedError):
        headers["allow"] = error.allow
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    if openai_shape:
        inner = {"message": message, "type": error.kind, "param": param, "code": error.status}
        return Response(dumps({"error": inner}), error.status, headers, negotiation.JSON)
    return Response(dumps({"error": message, "error_type": error.kind}), error.status, headers, negotiation.JSON)


def _base64(row: Rows) -> str:
    """Little-endian f32, as the `openai` client decodes it."""
    return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
