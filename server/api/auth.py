"""Who is asking: the dependency that every route stands behind, except probes and metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute

from server.api.record import record_of
from server.service.tenants import KeyRing, Tenant


def authorise(request: Request) -> Tenant:
    """Return the caller's tenant. Raises Unauthorized."""
    keys: KeyRing = request.app.state.keys
    tenant = keys.authenticate(request.headers.get("authorization"))
    record = record_of(request.scope)
    record.tenant, record.key_id = tenant.name, tenant.key_id
    return tenant


CurrentTenant = Annotated[Tenant, Depends(authorise)]
"""A route's parameter of this type is the caller."""


def protected_router(prefix: str = "", route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """Return a router for routes under `prefix`; none of them is reached without a key."""
    return APIRouter(prefix=prefix, dependencies=[Depends(authorise)], route_class=route_class)
