"""Every error BEI raises on purpose.

    BeiError
    ├── RequestError             the caller is told; carries the HTTP status, the wire `kind` and maybe the field
    │   ├── MalformedBodyError        400  not JSON, not UTF-8
    │   ├── EmptyInputError                400  empty input, empty list
    │   ├── UnauthorizedError         401  missing or wrong key
    │   ├── NotFoundError             404  no such route or model
    │   ├── MethodNotAllowedError     405
    │   ├── PayloadTooLargeError      413  body over `payload_limit`
    │   ├── ValidationError           422  wrong type, too long, bad dimensions, prompt or token ids
    │   ├── TokenizerError            422  the tokenizer refuses the text
    │   ├── WrongTaskError            424  the model does not do this
    │   ├── EngineError          424  the engine failed on a batch, or gave NaN for an item
    │   ├── OverloadedError           429  admission refused (with Retry-After)
    │   ├── UnhealthyError            503  starting, draining or broken
    │   └── DeadlineExceededError     504  the request's own deadline passed before it ran
    └── StartError               the operator is told, before anything is served
        ├── ConfigError          an unknown key, a value out of range
        ├── CheckpointError      a model folder or repository is missing something, or is not safe to read
        │   └── EngineCorruptError    a built engine whose files are not what was written
        ├── DiskError            a disk here that is full, failing, or may not be written
        ├── UnsupportedModelError     an architecture, pooling or module that no engine here knows
        ├── EngineUnavailableError    a named engine that cannot run here, and what it lacks
        └── QualityError         a quantised engine whose rows are too far from f32's

Baseten's performance client retries 408, 409, 429 and 5xx and nothing else, so a permanent fault is never one of those.
"""

from __future__ import annotations

from typing import ClassVar


class BeiError(Exception):
    """Base of every error raised on purpose; its text is safe to show."""


class RequestError(BeiError):
    """A request that ends in an error: `status` and `kind` go on the wire, `param` names the field at fault."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "Backend"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class MalformedBodyError(RequestError):
    """The body is not the JSON it claims to be."""

    status = 400
    kind = "Validation"


class EmptyInputError(RequestError):
    """There is nothing to work on."""

    status = 400
    kind = "Empty"


class UnauthorizedError(RequestError):
    """The key is missing or wrong."""

    status = 401
    kind = "Unauthorized"


class NotFoundError(RequestError):
    """No route, or no model, of that name."""

    status = 404
    kind = "NotFound"


class MethodNotAllowedError(RequestError):
    """The route exists, for the methods in `allow`."""

    status = 405
    kind = "MethodNotAllowed"

    def __init__(self, message: str, *, param: str | None = None, allow: str = "") -> None:
        super().__init__(message, param=param)
        self.allow = allow


class PayloadTooLargeError(RequestError):
    """The body is larger than `payload_limit`."""

    status = 413
    kind = "PayloadTooLarge"


class ValidationError(RequestError):
    """The request is well-formed and cannot be served as it stands."""

    status = 422
    kind = "Validation"


class TokenizerError(RequestError):
    """The tokenizer refuses the text."""

    status = 422
    kind = "Tokenizer"


class WrongTaskError(RequestError):
    """The served model does not do what the route asks."""

    status = 424
    kind = "WrongTask"


class EngineError(RequestError):
    """The engine failed on this item; the log has the traceback, the caller a fixed text."""

    status = 424
    kind = "Backend"


class OverloadedError(RequestError):
    """Too much is waiting already; come back in `retry_after_s` seconds."""

    status = 429
    kind = "Overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnhealthyError(RequestError):
    """The server is starting, draining or broken."""

    status = 503
    kind = "Unhealthy"


class DeadlineExceededError(RequestError):
    """The request's own deadline passed before its turn came, so it was dropped rather than run."""

    status = 504
    kind = "DeadlineExceeded"


class StartError(BeiError):
    """Nothing can be served until the operator changes something; the text says what."""


class ConfigError(StartError):
    """A setting that is unknown or out of range."""


class CheckpointError(StartError):
    """A model folder or repository that is missing something, or that is not safe to read."""


class EngineCorruptError(CheckpointError):
    """A built engine whose files are not what was written: a disk that failed, a copy that stopped half-way."""


class DiskError(StartError):
    """A disk here that is full, failing, or may not be read or written; the text names the path, and what to do."""


class UnsupportedModelError(StartError):
    """An architecture, pooling or module that no engine here knows."""


class EngineUnavailableError(StartError):
    """A named engine that cannot run here."""


class QualityError(StartError):
    """A quantised engine whose rows are too far from f32's."""
