"""How TGI and LoRAX tell of errors, and the routes that speak so."""

from __future__ import annotations

from typing import Any, Literal

from fastapi.routing import APIRoute
from pydantic import BaseModel

from server.api.errors import MAX_DETAILS
from server.api.openapi import ErrorReply
from server.errors import (
    AdapterRejected,
    EngineFault,
    InvalidRequest,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
    WaybillError,
)

Kind = Literal["validation", "generation", "overloaded", "incomplete_generation"]

_KINDS: tuple[tuple[type[WaybillError], int, Kind], ...] = (
    (InvalidRequest, 422, "validation"),
    (AdapterRejected, 422, "validation"),
    (TooLarge, 413, "validation"),
    (UnsupportedMediaType, 415, "validation"),
    (EngineFault, 424, "generation"),
    (Unavailable, 429, "overloaded"),
)
"""What has a kind of its own there. Their clients raise by the kind, and by the status where there is none."""


class TgiError(BaseModel):
    """The body of every error. `error_type` is absent where the status says all: 401, 404, 405, 408."""

    error: str
    error_type: Kind | None = None


class HealthError(BaseModel):
    """Why no work is taken."""

    error: str
    error_type: Literal["healthcheck"]


class TgiWords:
    """TGI's statuses and its error body."""

    def status(self, error: WaybillError) -> int:
        """Return 422, 424, 429 or 500 as TGI does; what TGI has no word for keeps its own status."""
        return _told(error)[0]

    def body(self, error: WaybillError) -> dict[str, Any]:
        """Return `{error, error_type?}`; several findings are one text."""
        kind = _told(error)[1]
        text = "; ".join(error.details[:MAX_DETAILS]) or error.message
        if error.param is not None and error.param not in text:
            text = f"{error.param}: {text}"
        return {"error": text} if kind is None else {"error": text, "error_type": kind}


class HealthWords(TgiWords):
    """What both servers' health routes say when they are not well: 503, and a kind of its own."""

    def status(self, error: WaybillError) -> int:
        """Return 503 where no work is taken, else what TGI's other routes say."""
        return error.status if isinstance(error, Unavailable) else super().status(error)

    def body(self, error: WaybillError) -> dict[str, Any]:
        """Return their body, with the reason in it."""
        if isinstance(error, Unavailable):
            return {"error": f"unhealthy: {error.message}", "error_type": "healthcheck"}
        return super().body(error)


class TgiRoute(APIRoute):
    """A route whose errors are TGI's."""

    error_words = TgiWords()


class HealthRoute(APIRoute):
    """A health route of TGI's."""

    error_words = HealthWords()


def tgi_replies(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return a route's description of its errors; what is turned away before any route is told in the usual words."""
    told: dict[int | str, dict[str, Any]] = {status: {"model": TgiError} for status in (405, *statuses)}
    return {400: {"model": ErrorReply, "description": "Not sent to this machine's own name."}, **told}


def _told(error: WaybillError) -> tuple[int, Kind | None]:
    for cls, status, kind in _KINDS:
        if isinstance(error, cls):
            return status, kind
    return (error.status, None) if error.status < 500 else (500, "incomplete_generation")
