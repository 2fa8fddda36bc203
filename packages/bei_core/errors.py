"""Every error that BEI raises on purpose.

    BeiError
    ├── LoadError                     the load generator of `bei bench` failed (bench/client.py)
    ├── RequestError                  told to the client; has an HTTP status, a `kind` and maybe the name of a field
    │   ├── MalformedBodyError        400  the body is not JSON in UTF-8
    │   ├── EmptyInputError           400  an empty text or list
    │   ├── UnauthorizedError         401  missing or wrong key
    │   ├── NotFoundError             404  no such route or model
    │   ├── MethodNotAllowedError     405
    │   ├── PayloadTooLargeError      413  body larger than `payload_limit` or a limit of its JSON
    │   ├── UnknownCodingError        415  the content-encoding of the body is not known
    │   ├── ValidationError           422  wrong type, too long, bad dimensions, prompt or token ids
    │   ├── TokenizerError            422  the tokenizer refuses the text
    │   ├── WrongTaskError            424  the model cannot do this
    │   ├── EngineError               424  the engine failed on a batch, or gave NaN for an item
    │   ├── OverloadedError           429  too much is in progress (with Retry-After)
    │   ├── UnhealthyError            503  starting, draining or broken
    │   └── DeadlineExceededError     504  the request's own deadline passed before it ran
    ├── EngineCrashedError            told to the operator: the thread of an engine has ended, and so does the process
    └── StartError                    told to the operator before anything is served
        ├── ConfigError               an unknown key, a value out of range
        ├── CheckpointError           a model folder or repository is incomplete, or not safe to read
        │   ├── EngineCorruptError    the files of a built engine are not those that were written
        │   ├── DriverMissingError    the package that reads an object store is not installed (storage/errors.py)
        │   └── TransientError        a store or server does not answer, and may later (storage/errors.py)
        ├── DiskError                 a local disk is full, fails, or may not be written
        ├── UnsupportedModelError     no engine here has the architecture, pooling or module
        ├── EngineUnavailableError    the engine that was chosen cannot run here, and why
        └── QualityError              the rows of a quantised engine are too far from those of f32

Two errors are caught in the module that defines them: HttpError (http/server/parser.py: the bytes of a request are not
HTTP, or exceed a limit; its status is 400, 405, 414 or 431) and TrussChangedError (truss/routes.py: Truss's server
is not built as expected).

Baseten's performance client retries 408, 409, 429 and 5xx, so a permanent error never has one of these.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

# The limits because of which a request gets status 429. `key_limit`: one of the client's own key; all others protect
# the server.
OverloadCause: TypeAlias = Literal[
    "queue_wait", "queue_tokens", "concurrency", "deadline", "body_bytes", "retry_budget", "key_limit"
]


class BeiError(Exception):
    """Base of every error raised on purpose. Its text contains no secret and may be shown to any client.

    `exit_status` is the status of the command `bei` that ends by the error, as in sysexits.h (docs/operations.md).
    """

    exit_status: ClassVar[int] = 1


class RequestError(BeiError):
    """An error of one request. The client gets `status`, `kind`, and in `param` the field at fault."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "Backend"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class MalformedBodyError(RequestError):
    """The body is not JSON in UTF-8."""

    status = 400
    kind = "Validation"


class EmptyInputError(RequestError):
    """A text or a list is empty."""

    status = 400
    kind = "Empty"


class UnauthorizedError(RequestError):
    """The key is missing or wrong."""

    status = 401
    kind = "Unauthorized"


class NotFoundError(RequestError):
    """There is no route or model of that name."""

    status = 404
    kind = "NotFound"


class MethodNotAllowedError(RequestError):
    """The route exists, but only for the methods in `allow`."""

    status = 405
    kind = "MethodNotAllowed"

    def __init__(self, message: str, *, param: str | None = None, allow: str = "") -> None:
        super().__init__(message, param=param)
        self.allow = allow


class PayloadTooLargeError(RequestError):
    """The body is larger than `payload_limit`, or its JSON has more values, lists, fields or text than are read."""

    status = 413
    kind = "PayloadTooLarge"


class UnknownCodingError(RequestError):
    """The content-encoding of the body is not known."""

    status = 415
    kind = "Validation"


class ValidationError(RequestError):
    """The body is JSON, but a field has a wrong type or value."""

    status = 422
    kind = "Validation"


class TokenizerError(RequestError):
    """The tokenizer refuses the text."""

    status = 422
    kind = "Tokenizer"


class WrongTaskError(RequestError):
    """The served model cannot do what the route asks."""

    status = 424
    kind = "WrongTask"


class EngineError(RequestError):
    """The engine failed on this item. The client gets a fixed text, the log the traceback."""

    status = 424
    kind = "Backend"


# The longest wait that an overloaded server says, in seconds. A reply adds up to half of it at random, and OpenAI's
# client obeys up to 120 s.
MAX_RETRY_AFTER_S = 60


class OverloadedError(RequestError):
    """Too much is in progress already; the client should retry after `retry_after_s` seconds.

    `cause` is what the metrics count: the limit that was reached.
    """

    status = 429
    kind = "Overloaded"

    def __init__(self, message: str, *, cause: OverloadCause, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after_s = retry_after_s


class UnhealthyError(RequestError):
    """The server is starting, draining or broken."""

    status = 503
    kind = "Unhealthy"


class DeadlineExceededError(RequestError):
    """The request's own deadline passed before it ran, so it was dropped."""

    status = 504
    kind = "DeadlineExceeded"


class EngineCrashedError(BeiError):
    """The thread that runs an engine has ended, so the process ends too."""


class StartError(BeiError):
    """The server cannot start until the operator changes what the text says."""


class ConfigError(StartError):
    """A setting is unknown or out of range."""

    exit_status = 78  # EX_CONFIG


class CheckpointError(StartError):
    """A model folder or repository is incomplete, or not safe to read."""

    exit_status = 65  # EX_DATAERR


class EngineCorruptError(CheckpointError):
    """The files of a built engine have changed: the disk failed, or a copy was not finished."""


class DiskError(StartError):
    """A local disk is full, fails, or may not be read or written; the text names the path and what to do."""

    exit_status = 74  # EX_IOERR


class UnsupportedModelError(StartError):
    """No engine here has the architecture, the pooling or a module of the model."""

    exit_status = 65  # EX_DATAERR


class EngineUnavailableError(StartError):
    """The engine that was chosen cannot run here."""

    exit_status = 69  # EX_UNAVAILABLE


class QualityError(StartError):
    """The rows of a quantised engine are too far from those of f32."""

    exit_status = 65  # EX_DATAERR
