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
    """Raise InvalidRequest for parameters in the URL that the route does not have: what is not heard is not taken."""
    route: APIRoute = request.scope["route"]
    known = {parameter.alias for parameter in route.dependant.query_params}
    for name in request.query_params:
        if name not in known:
            has = f"has {', '.join(sorted(known))}" if known else "has none"
            raise InvalidRequest(f"{name[:64]}: unknown parameter; this route {has} in its URL", param=name[:64])


CurrentTenant = Annotated[Tenant, Depends(authorise)]
"""A route's parameter of this type is the caller."""


def protected_router(prefix: str = "", route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """Return a router for routes under `prefix`; none is reached without a key, or with a query that it lacks."""
    dependencies = [Depends(authorise), Depends(refuse_query)]
    return APIRouter(prefix=prefix, dependencies=dependencies, route_class=route_class)
