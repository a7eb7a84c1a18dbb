"""Probes and metrics: open to everybody, and silent about tenants, prompts and keys."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from server.api.openapi import error_replies
from server.engine.client import EngineClient
from server.errors import Draining, EngineRestarting
from server.metrics import Metrics
from server.service.admission import Gate

router = APIRouter()


@router.get("/health/live", responses=error_replies((400, 405)))
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "live"}


@router.get("/health/ready", responses=error_replies((400, 405, 503)))
async def ready(request: Request) -> dict[str, str]:
    """Say whether new work is taken: 503 while the engine is down or the server is shutting down."""
    require_ready(request)
    return {"status": "ready"}


def require_ready(request: Request) -> None:
    """Raise Draining or EngineRestarting where no new work is taken."""
    gate: Gate = request.app.state.gate
    engine: EngineClient = request.app.state.engine
    if gate.draining:
        raise Draining("the server is shutting down", retry_after=5)
    if not engine.ready:
        raise EngineRestarting("the engine is being restarted", retry_after=5)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=error_replies((400, 405)),
)
async def metrics(request: Request) -> Response:
    """Give every metric in Prometheus's text format."""
    registry: Metrics = request.app.state.metrics
    return Response(registry.render(), media_type=CONTENT_TYPE_LATEST)
