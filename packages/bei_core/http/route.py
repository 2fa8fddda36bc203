"""A route as data, and one request on its way through it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from starlette.requests import Request

from bei_core.http.schemas.common import Named
from bei_core.logs import log_access
from bei_core.metrics import Timings
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
    default: Route | None = None  # of a path that takes all bodies: the shape of errors until the route is known
    body: Any = None  # an instance of `route.schema`
    deadline: float | None = None  # on the clock of time.monotonic
    priority: str = "normal"
    timings: Timings = field(default_factory=Timings)

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
    """One method and path. A route of another API is a row of `routes.ROUTES` and a schema."""

    method: Literal["GET", "POST"]
    path: str
    summary: str
    schema: type[Named] | None = None  # of the request's body; a `Body` unless there is an `answer`
    answer: Answer | None = None  # None: the model answers, by the schema's `to_task` and `to_reply`
    inputs: str = "inputs"  # the name of the body's field with the inputs, for error texts
    openai: bool = False  # whether errors have OpenAI's shape
    public: bool = False  # whether it needs no key
