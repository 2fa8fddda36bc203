"""`Route`, which describes a route as data, and `Call`, the state of one request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.requests import Request

from bei_core.http.disconnects import WATCH, ReceivingWatch, Watch
from bei_core.http.error_format import TEI, ErrorFormat
from bei_core.http.json_schema import JsonSchema
from bei_core.http.keys import Client
from bei_core.http.limits import count_bytes, mark_large
from bei_core.http.naming import Names
from bei_core.http.replies import BYTES_PER_NUMBER
from bei_core.http.schemas.common import Named
from bei_core.logs import log_access
from bei_core.metrics import Timings
from bei_core.models.kind import Kind
from bei_core.serving.service import Service

# While a text is divided into chunks, a token of it takes about 500 bytes.
MANY_TOKENS = 65_536


@dataclass(slots=True)
class Call:
    """The state of one request while it is answered."""

    request: Request
    method: str
    path: str
    headers: Mapping[bytes, bytes]  # the first value if a header is repeated
    request_id: str  # the client's or a random one; the reply's body and headers share it
    names: Names  # of all models of the server
    service: Service  # the model that answers the request
    route: Route | None  # None: not known yet, or no route matches
    route_of: Callable[[object, Service], Route]  # chooses the route by the fields of a decoded body
    default: Route | None = None  # for a path that takes any body: its error format is used until the route is known
    body: Any = None  # an instance of `route.schema`
    is_large: bool = False  # the body or reply is large, so code that reads all of it runs on a thread
    client: Client | None = None  # the client whose API key it has; None: no key is needed, or it is wrong
    deadline: float | None = None  # seconds on the clock of time.monotonic
    priority: str = "normal"
    receiver: ReceivingWatch | None = None  # watches the client if the server does not
    timings: Timings = field(default_factory=Timings)
    num_reserved: int = 0  # bytes of the model's result, which were counted before it was computed

    def reserve(self, num_bytes: int) -> None:
        """Adds bytes of the model's result to the memory of the request; see `limits.count_bytes`.

        Raises OverloadedError also if there is no space for the reply, so that a result is not computed in vain.
        """
        reply = num_bytes * BYTES_PER_NUMBER // 4
        self.count_bytes(reply)
        self.count_bytes(num_bytes - reply)
        self.num_reserved += num_bytes

    def count_reply(self, num_bytes: int) -> None:
        """Adds the bytes of a reply and its result to the memory of the request, in place of those of `reserve`."""
        self.count_bytes(num_bytes - self.num_reserved)

    def mark_large(self) -> None:
        """Lets freed memory be returned after the request, whose tokens may have come in a small body."""
        mark_large(self.request.scope)

    def count_bytes(self, num_bytes: int) -> None:
        """Adds bytes to the memory of the request; see `limits.count_bytes`."""
        count_bytes(self.request.scope, num_bytes)

    @property
    def watch(self) -> Watch | None:
        """Cancels the task that answers the request if the client disconnects; None if nothing watches the client."""
        watch: Watch | None = self.request.scope.get("extensions", {}).get(WATCH, self.receiver)
        return watch

    def receive_disconnect(self) -> Watch:
        """Watches the client by the messages of the server. Call `receiver.close` afterwards."""
        self.receiver = ReceivingWatch(self.request)
        return self.receiver

    def log(self, status: int) -> None:
        """Writes the request's line of the access log."""
        timings = self.timings
        log_access(
            self.method,
            self.path,
            status,
            {
                "request_id": self.request_id,
                "model": timings.model,
                "inputs": timings.num_inputs,
                "tokens": timings.num_tokens,
                "tokenization_ms": 1e3 * timings.tokenization_s,
                "queue_ms": 1e3 * timings.queue_s,
                "inference_ms": 1e3 * timings.inference_s,
                "total_ms": 1e3 * timings.total_s,
            },
        )


Answer: TypeAlias = Callable[[Call], Awaitable[object]]  # the value of the reply's body, or `replies.Plain`


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path, with the data that the server, the OpenAPI document and docs/routes.md need.

    To add a route, add a row to `ROUTES` in the file of its API in `http/schemas/`.
    """

    method: Literal["GET", "POST"]
    path: str
    summary: str  # for the documents, in Markdown
    schema: type[Named] | None = None  # schema of the request's body; it implements `Body` unless `answer` is set
    answer: Answer | None = None  # None: the model runs, through the schema's `to_task` and `to_reply`
    reply: JsonSchema | None = None  # schema of the reply's body; None: no body, or not JSON
    example: Mapping[str, Any] | None = None  # a body, for the documents
    reply_example: Any = None  # a reply's body, for the documents; None: one that is made from `reply`
    errors: ErrorFormat = TEI
    inputs: str = "inputs"  # the name of the body's field with the inputs, used in error messages
    other_inputs: tuple[str, ...] = ()  # fields that a body may have instead
    public: bool = False  # whether it needs no key
    aliases: tuple[str, ...] = ()  # other paths with the same meaning
    by_fields: bool = False  # whether the paths that take any body accept its body too
    default_for: tuple[Kind, ...] = ()  # kinds of model for which it is chosen if a body fits several routes
    takes_any: bool = False  # whether it takes any body: the body's fields decide which other route answers

    def inputs_of(self, body: object) -> str:
        """Returns the name of the field with the inputs in a body of this route; None is a body that was not read."""
        return next((name for name in self.other_inputs if getattr(body, name, None) is not None), self.inputs)


def prepare_schemas(routes: Iterable[Route]) -> None:
    """Makes msgspec's tables for the body of each route. Call it on one thread, before any body is decoded.

    msgspec 0.22 makes them when a struct is first used, and reads a null pointer if two threads do so at once.
    """
    for route in routes:
        if route.schema is not None:
            msgspec.json.Decoder(route.schema)
