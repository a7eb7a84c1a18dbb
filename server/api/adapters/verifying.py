"""Let the server prove that an adapter computes what it should."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import JSONResponse, Response

from server.api.adapters.cards import ParityCard, as_json
from server.api.adapters.requests import Chosen, Name, Owner, chosen
from server.api.auth import CurrentTenant, protected_router
from server.api.openapi import ANY_ROUTE, error_replies
from server.formats.names import LATEST
from server.service.adapters import AdapterService
from server.service.verifying import VerificationService

router = protected_router("/v1")


@router.post("/adapters/{name}:verify", response_model=ParityCard, responses=error_replies((*ANY_ROUTE, 404, 422)))
async def verify_adapter(
    request: Request, name: Name, tenant: CurrentTenant, version: Chosen = LATEST, owner: Owner = None
) -> Response:
    """Compare what the server computes for a version with the base model run alone, as PEFT does it."""
    adapters: AdapterService = request.app.state.adapters
    service: VerificationService = request.app.state.verification
    found = await adapters.find(tenant, chosen(name, owner, version))
    verified = await service.verify(tenant, found)
    parity = verified.parity
    card = ParityCard(
        name=found.name,
        tenant=found.tenant,
        version=found.label,
        digest=found.digest,
        dtype=verified.dtype,
        holds=parity.holds,
        positions=parity.positions,
        same_tokens=parity.same_tokens,
        largest_difference=parity.largest,
        standard_deviation=parity.deviation,
        error=parity.error,
        allowed=parity.allowed,
    )
    return JSONResponse(as_json(card))
