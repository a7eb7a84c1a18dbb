"""Who is asking: the dependency that every route stands behind, except probes and metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute

from server.api.record import record_of
from server.errors import InvalidRequest
from server.service.tenants import KeyRing, Tenant


def authorise(request: Request) -> Tenant:
    """Return the caller's tenant. Raises Unauthorized."""
    keys: KeyRing = request.app.state.keys
    tenant = keys.authenticate(request.headers.get("authorization"))
    record = record_of(request.scope)
    record.tenant, record.key_id = tenant.name, tenant.key_id
    return tenant


async def refuse_query(request: Request) -> None:
    """Raise InvalidRequest for parameters in the URL: no route has any, and what is not heard is not taken."""
    for name in request.query_params:
        raise InvalidRequest(f"{name[:64]}: unknown parameter; this route has none in its URL", param=name[:64])


CurrentTenant = Annotated[Tenant, Depends(authorise)]
"""A route's parameter of this type is the caller."""


def protected_router(prefix: str = "", route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """Return a router for routes under `prefix`; none of them is reached without a key, or with a query."""
    dependencies = [Depends(authorise), Depends(refuse_query)]
    return APIRouter(prefix=prefix, dependencies=dependencies, route_class=route_class)
