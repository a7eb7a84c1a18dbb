"""Every error a client can meet, with its HTTP status and stable code.

    WaybillError
    ├── InvalidRequest            400 invalid_request        a field is wrong; `param` names it
    │   └── ContextTooLong        400 context_length_exceeded
    ├── Unauthorized              401 invalid_api_key
    ├── NotFound                  404 not_found
    │   ├── AdapterNotFound       404 adapter_not_found      also when it exists but is not yours
    │   └── ModelNotFound         404 model_not_found        `model` names neither the base nor an adapter
    ├── MethodNotAllowed          405 method_not_allowed
    ├── DeadlineReached           408 timeout
    ├── BodyStalled               408 body_timeout
    ├── RevisionConflict          412 revision_conflict      another changed it first; `If-Match` names the wrong state
    ├── TooLarge                  413 payload_too_large
    ├── UnsupportedMediaType      415 unsupported_media_type
    ├── AdapterRejected           422 adapter_invalid        the files themselves are bad
    │   └── AdapterIncompatible   422 adapter_incompatible   good files, wrong base model
    ├── EngineFault               500 engine_error           this request only
    └── Unavailable               503 (always with Retry-After)
        ├── Overloaded            503 overloaded
        ├── StoreFull             503 store_full
        ├── Draining              503 draining
        └── EngineRestarting      503 engine_restarting

Raised where they are known; turned into HTTP in one place, `server.api.errors`. Permanent failures are never 409, 429
or 5xx: clients retry those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class WaybillError(Exception):
    """A fault of the server's, where no class below says more.

    `param` names the request field at fault; `details` lists the findings when there are several; `retry_after` is in
    seconds.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        details: tuple[str, ...] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = details
        self.retry_after = retry_after


class InvalidRequest(WaybillError):
    """A field is missing, unknown, out of range, or contradicts another."""

    status = 400
    code = "invalid_request"


class ContextTooLong(InvalidRequest):
    """Virtual tokens, prompt and requested output do not fit the context together."""

    code = "context_length_exceeded"


class Unauthorized(WaybillError):
    """No API key, or one that is not known."""

    status = 401
    code = "invalid_api_key"


class NotFound(WaybillError):
    """No such route or object."""

    status = 404
    code = "not_found"


class AdapterNotFound(NotFound):
    """No such adapter, version or alias, or none that this tenant can see. `known` tells that there is such a name."""

    code = "adapter_not_found"

    def __init__(self, message: str, *, param: str | None = None, known: bool = False) -> None:
        super().__init__(message, param=param)
        self.known = known


class ModelNotFound(NotFound):
    """`model` names neither the base model nor an adapter that you may see."""

    code = "model_not_found"


class MethodNotAllowed(WaybillError):
    """The route exists, but not with this method: the header `Allow` names those it has, as `allow` does."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class DeadlineReached(WaybillError):
    """The request's own `timeout_s` passed. In a stream that has begun, `finish_reason` is `timeout` instead."""

    status = 408
    code = "timeout"


class BodyStalled(WaybillError):
    """The body stopped coming, or came at less than 1 KiB a second."""

    status = 408
    code = "body_timeout"


class RevisionConflict(WaybillError):
    """What was to be changed is not, or is no longer, in the state that the request was made for."""

    status = 412
    code = "revision_conflict"


class TooLarge(WaybillError):
    """The body is larger than the server takes."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(WaybillError):
    """The body is not of the content type that the route takes."""

    status = 415
    code = "unsupported_media_type"


class AdapterRejected(WaybillError):
    """The adapter's files are malformed, unsafe, inconsistent, or hold values no model can use."""

    status = 422
    code = "adapter_invalid"


class AdapterIncompatible(AdapterRejected):
    """The adapter is well-formed but was made for another base model."""

    code = "adapter_incompatible"


class EngineFault(WaybillError):
    """The engine failed on this request; others go on."""

    status = 500
    code = "engine_error"


class Unavailable(WaybillError):
    """The server cannot take the request now; the same request may work later."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message, param=param, retry_after=retry_after)


class Overloaded(Unavailable):
    """The queue is full."""

    code = "overloaded"


class StoreFull(Unavailable):
    """There is no room for an upload on the server's disk."""

    code = "store_full"


class Draining(Unavailable):
    """The server is shutting down."""

    code = "draining"


class EngineRestarting(Unavailable):
    """The engine process died and is being started again."""

    code = "engine_restarting"


def all_errors() -> Iterator[type[WaybillError]]:
    """Yield every class of the tree, the root first."""
    pending: list[type[WaybillError]] = [WaybillError]
    while pending:
        cls = pending.pop(0)
        yield cls
        pending += cls.__subclasses__()


def error_of(code: str, message: str) -> WaybillError:
    """Return the error that crossed a process boundary as its code and message."""
    for cls in all_errors():
        if cls.code == code:
            return cls(message)
    return EngineFault(message)
