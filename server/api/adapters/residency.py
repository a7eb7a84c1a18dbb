"""Where an adapter is on this server, and where it should be."""

from __future__ import annotations

from fastapi import Request
from pydantic import Field, model_validator
from starlette.responses import JSONResponse, Response

from server.api.adapters.cards import ResidencyCard, as_json, residency_card
from server.api.adapters.requests import Chosen, Name, Owner, chosen
from server.api.auth import CurrentTenant, protected_router
from server.api.body import read_json
from server.api.openapi import ANY_ROUTE, GENERATING, error_replies, json_body
from server.api.strict import Strict
from server.formats.names import LATEST
from server.service.adapters import AdapterService
from server.service.residency import ResidencyService

router = protected_router("/v1")

MAX_BODY = 4096


class ResidencyChange(Strict):
    """What is to happen with a version's place in the engine's memory, on this server."""

    pinned: bool | None = Field(None, description="`true`: load it, and evict it last of all; `false`: as any other.")
    preload: bool | None = Field(None, description="`true`: load it now.")
    evict: bool | None = Field(None, description="`true`: drop it, and its pin, once no request uses it.")

    @model_validator(mode="after")
    def _one_thing(self) -> ResidencyChange:
        if not (self.pinned is not None or self.preload or self.evict):
            raise ValueError("send pinned, preload: true, or evict: true")
        if self.evict and (self.pinned or self.preload):
            raise ValueError("evict contradicts pinned and preload")
        return self


@router.get("/adapters/{name}/residency", response_model=ResidencyCard, responses=error_replies((*ANY_ROUTE, 404)))
async def show_residency(
    request: Request, name: Name, tenant: CurrentTenant, version: Chosen = LATEST, owner: Owner = None
) -> Response:
    """Show where the nearest copy of a version is."""
    service: AdapterService = request.app.state.adapters
    residency: ResidencyService = request.app.state.residency
    found = await service.find(tenant, chosen(name, owner, version))
    return JSONResponse(as_json(residency_card(found, residency.tell(found))))


@router.put(
    "/adapters/{name}/residency",
    response_model=ResidencyCard,
    responses=error_replies(GENERATING),
    openapi_extra=json_body(ResidencyChange),
)
async def change_residency(request: Request, name: Name, tenant: CurrentTenant, version: Chosen = LATEST) -> Response:
    """Preload a version of one of your adapters, pin it in memory, or evict it. It counts for this server alone."""
    service: AdapterService = request.app.state.adapters
    residency: ResidencyService = request.app.state.residency
    body = await read_json(request, ResidencyChange, MAX_BODY)
    found = await service.find(tenant, chosen(name, tenant.name, version))
    if body.pinned:
        await residency.pin(tenant, found)
    elif body.preload:
        await residency.preload(tenant, found)
    if body.pinned is False or body.evict:
        residency.unpin(found)
    if body.evict:
        await residency.evict(found)
    return JSONResponse(as_json(residency_card(found, residency.tell(found))))
