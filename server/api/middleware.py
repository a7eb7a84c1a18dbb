"""Around every request: its id, its log line, its place in the metrics, and a plain 500 for what nobody foresaw."""

from __future__ import annotations

import logging
import re
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import error_response
from server.api.record import PLAIN_SEND, RequestRecord, record_of
from server.errors import InvalidRequest, WaybillError
from server.metrics import Metrics

requests_log = logging.getLogger("waybill.requests")
logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestLog:
    """Give each request an id (the client's own where it is well-formed), tell it in the answer, log one line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(Headers(scope=scope)), scope["method"][:16])
        scope["waybill.record"] = record
        scope[PLAIN_SEND] = send

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = record.status or message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            _log_surprise(error, record.request_id)
            if record.status == 0:
                await error_response(scope, WaybillError("internal error"))(scope, receive, send_with_id)
            record.status, record.error = 500, WaybillError.code
        finally:
            record.route = _route(scope)
            self._metrics.observe_http(record.route, record.status)
            requests_log.info("request", extra={"fields": record.line()})


class LoopbackOnly:
    """Refuse what web pages of others send: they must not reach a keyless server, by DNS rebinding or by a form.

    `Host` has to be one of this machine's own names, and so has the host of `Origin`, where a browser sends one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            foreign = "Host" if not _is_loopback(headers.get("host", "")) else None
            if origin is not None and not _is_loopback(origin.partition("://")[2]):
                foreign = foreign or "Origin"
            if foreign is not None:
                refusal = InvalidRequest("without API keys this server answers only to localhost", param=foreign)
                record_of(scope).error = refusal.code
                await error_response(scope, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_loopback_name(host: str) -> bool:
    """Whether a host name or address (without a port) is this machine's own."""
    bare = host.removeprefix("[").removesuffix("]").lower().rstrip(".")
    return bare in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", bare) is not None


def _is_loopback(header: str) -> bool:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]+)(:\d{1,5})?", header)
    return match is not None and is_loopback_name(match[1])


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The path's template: what stands in the path itself may be anything."""
    return getattr(scope.get("route"), "path", "") or "unknown"


def _log_surprise(error: Exception, request_id: str) -> None:
    """Log the type and the place, not the message: it may quote a prompt."""
    place = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    logger.error("%s in request %s\n%s", type(error).__name__, request_id, place)
