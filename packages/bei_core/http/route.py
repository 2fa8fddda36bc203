"""A route as data, and one request on its way through it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from starlette.requests import Request

from bei_core.http.error_format import TEI, ErrorFormat
from bei_core.http.json_schema import JsonSchema
from bei_core.http.keys import Client
from bei_core.http.limits import count_bytes
from bei_core.http.schemas.common import Named
from bei_core.logs import log_access
from bei_core.metrics import Timings
from bei_core.models.kind import Kind
from bei_core.serving.service import Service


@dataclass(slots=True)
class Call:
    """One request."""

    request: Request
    method: str
    path: str
    headers: Mapping[bytes, bytes]  # of several with one name the first
    request_id: str  # the client's or a random one; the reply's body and headers share it
    services: Sequence[Service]  # all models of the server
    service: Service  # the model that is meant
    route: Route | None  # None: not known yet, or there is none
    route_of: Callable[[object, Service], Route]  # the route that a decoded body is for, by its fields
    default: Route | None = None  # of a path that takes all bodies: the format of errors until the route is known
    body: Any = None  # an instance of `route.schema`
    is_large: bool = False  # the body or the reply is: what reads all of it runs on a thread
    client: Client | None = None  # whose key it has; None: no key is needed, or it is wrong
    deadline: float | None = None  # on the clock of time.monotonic
    priority: str = "normal"
    timings: Timings = field(default_factory=Timings)

    def count_bytes(self, num_bytes: int) -> None:
        """Counts memory of the request, as `limits.count_bytes` does."""
        count_bytes(self.request.scope, num_bytes)

    def log(self, status: int) -> None:
        """Writes the request's line of the access log."""
        timings = self.timings
        log_access(
            method=self.method,
            path=self.path,
            status=status,
            request_id=self.request_id,
            model=timings.model,
            num_inputs=timings.num_inputs,
            num_tokens=timings.num_tokens,
            tokenization_ms=1e3 * timings.tokenization_s,
            queue_ms=1e3 * timings.queue_s,
            inference_ms=1e3 * timings.inference_s,
            total_ms=1e3 * timings.total_s,
        )


Answer: TypeAlias = Callable[[Call], Awaitable[object]]  # the value of the reply's body, or `replies.Plain`


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path, and all that the server, the OpenAPI document and docs/routes.md say of it.

    A route of another API is a row in `ROUTES` of the API's file in `http/schemas/`.
    """

    method: Literal["GET", "POST"]
    path: str
    summary: str  # for the documents, in Markdown
    schema: type[Named] | None = None  # of the request's body; a `Body` unless there is an `answer`
    answer: Answer | None = None  # None: the model answers, by the schema's `to_task` and `to_reply`
    reply: JsonSchema | None = None  # of the reply's body; None: there is none, or it is not JSON
    errors: ErrorFormat = TEI
    inputs: str = "inputs"  # the name of the body's field with the inputs, for error texts
    public: bool = False  # whether it needs no key
    aliases: tuple[str, ...] = ()  # other paths with the same meaning
    by_shape: bool = False  # whether a body for it may also be sent to the paths that take any body
    default_for: tuple[Kind, ...] = ()  # the kinds of model whose bodies are for it if their fields allow several
    takes_any: bool = False  # whether it is such a path: another route answers, which the body's fields decide
