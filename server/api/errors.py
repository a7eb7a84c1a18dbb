"""The one place where errors become HTTP: in the words of the route's API, which are OpenAI's unless it says others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from server.api.client import ClientGone
from server.api.record import CLIENT_GONE, record_of
from server.errors import (
    BodyStalled,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
    WaybillError,
)

MAX_DETAILS = 10
"""Findings told at most; a body can be made to hold thousands."""

MAX_ECHO = 200
"""Characters of a client's own words that an answer repeats at most."""

MAX_RETRY_AFTER = 60
"""Seconds."""


class ErrorWords(Protocol):
    """How one API tells of errors. A route speaks in the words that its `error_words` holds."""

    def status(self, error: WaybillError) -> int:
        """Return the HTTP status."""
        ...

    def body(self, error: WaybillError) -> dict[str, Any]:
        """Return the body, as what JSON can say."""
        ...


class UsualWords:
    """OpenAI's error object, with Waybill's statuses and codes."""

    def status(self, error: WaybillError) -> int:
        """Return the error's own status."""
        return error.status

    def body(self, error: WaybillError) -> dict[str, Any]:
        """Return the error object."""
        return error_body(error)


USUAL_WORDS = UsualWords()


def error_body(error: WaybillError) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code, details?}}`."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": _type(error.status),
        "param": error.param,
        "code": error.code,
    }
    if error.details:
        body["details"] = list(error.details[:MAX_DETAILS])
    return {"error": body}


def error_response(scope: Scope, error: WaybillError) -> Response:
    """Return the whole answer to a request that failed before its first byte."""
    words: ErrorWords = getattr(scope.get("route"), "error_words", USUAL_WORDS)
    return JSONResponse(words.body(error), status_code=words.status(error), headers=_headers(error))


def from_validation(error: ValidationError | RequestValidationError) -> InvalidRequest:
    """Return the findings of pydantic as one error; values are never repeated, names only in part."""
    findings = _findings(error)[:MAX_DETAILS]
    lines = [_line(finding) for finding in findings]
    param = _path(findings[0]["loc"]) or None
    return InvalidRequest(lines[0], param=param, details=tuple(lines) if len(lines) > 1 else ())


def _findings(error: ValidationError | RequestValidationError) -> Sequence[Any]:
    """Return all findings. Nothing but place, kind and words is asked for: there may be a thousand."""
    if isinstance(error, ValidationError):
        return error.errors(include_url=False, include_context=False, include_input=False)
    return error.errors()


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(WaybillError)
    async def _ours(request: Request, error: WaybillError) -> Response:
        return _answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def _parameters(request: Request, error: RequestValidationError) -> Response:
        return _answer(request, from_validation(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return _answer(request, _from_http(request, error))

    @app.exception_handler(ClientGone)
    async def _gone(request: Request, _: ClientGone) -> Response:
        record_of(request.scope).status = CLIENT_GONE
        return Response(status_code=CLIENT_GONE)


def _answer(request: Request, error: WaybillError) -> Response:
    record_of(request.scope).error = error.code
    return error_response(request.scope, error)


def _from_http(request: Request, error: HTTPException) -> WaybillError:
    if error.status_code == 404:
        return NotFound("no such route")
    if error.status_code == 405:
        return MethodNotAllowed(f"this route does not take {request.method[:16]}", allow=", ".join(_methods(request)))
    return InvalidRequest("the request could not be read")


def _methods(request: Request) -> list[str]:
    """Return the methods that the path has: each may be a route of its own."""
    routes = request.app.router.routes
    asked = [
        (method, {**request.scope, "method": method}) for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    ]
    return [method for method, scope in asked if any(route.matches(scope)[0] is Match.FULL for route in routes)]


def _headers(error: WaybillError) -> dict[str, str]:
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, min(error.retry_after or 1, MAX_RETRY_AFTER)))
    elif error.status in (408, 500):
        # Common clients repeat these by themselves; the same request would only fail again.
        headers["x-should-retry"] = "false"
    if isinstance(error, TooLarge | BodyStalled):
        headers["Connection"] = "close"
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["Allow"] = error.allow
    return headers


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 408:
        return "timeout_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _line(finding: Any) -> str:
    path = _path(finding["loc"])
    if finding["type"] == "extra_forbidden":
        return f"{path}: unknown field"
    if finding["type"] == "json_invalid":
        return "the body is not valid JSON"
    text = str(finding["msg"]).removeprefix("Value error, ")[:MAX_ECHO]
    return f"{path}: {text}" if path else text


def _path(location: tuple[int | str, ...]) -> str:
    if location[:1] in (("path",), ("query",), ("header",)):  # FastAPI says where a route's own parameter came from
        location = location[1:]
    named = [str(part) for part in location[:1]]
    named += [str(part) for part in location[1:] if not str(part).startswith("<")]
    return ".".join(named)[:MAX_ECHO]
