"""Look at adapters, and download them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import anyio.to_thread
from fastapi import Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from server.api.adapters.cards import (
    AdapterCard,
    AdapterList,
    VersionCard,
    VersionList,
    adapter_card,
    as_json,
    version_card,
)
from server.api.adapters.requests import Name, Owner, VersionName, chosen, etag
from server.api.auth import CurrentTenant, protected_router
from server.api.openapi import ANY_ROUTE, error_replies
from server.core import AdapterKind
from server.formats.names import check_name
from server.service.adapters import AdapterService
from server.service.packing import zip_name, zipped
from server.service.residency import ResidencyService
from server.store.store import Adapter
from server.store.version import Version

router = protected_router("/v1")

Limit = Annotated[int, Query(ge=1, le=1000, description="The most that is listed.")]


@router.get("/adapters", response_model=AdapterList, responses=error_replies((*ANY_ROUTE, 404)))
async def list_adapters(
    request: Request,
    tenant: CurrentTenant,
    limit: Limit = 100,
    after: Annotated[str, Query(max_length=200, description="`last_id` of the page before.")] = "",
    owner: Annotated[
        str | None, Query(alias="tenant", max_length=80, description="Only yours, or only `public` ones.")
    ] = None,
    kind: Annotated[AdapterKind | None, Query(description="Only of this kind.")] = None,
    tag: Annotated[str | None, Query(max_length=64, description="Only those that bear this tag.")] = None,
    resident: Annotated[
        bool | None, Query(description="Only those whose latest version is, or is not, in the engine's memory.")
    ] = None,
) -> Response:
    """List your adapters and the public ones, each at its latest version."""
    service: AdapterService = request.app.state.adapters
    residency: ResidencyService = request.app.state.residency

    def keep(adapter: Adapter) -> bool:
        return (
            (kind is None or adapter.latest.spec.kind is kind)
            and (tag is None or tag in adapter.pointers.tags)
            and (resident is None or residency.is_resident(adapter.latest.digest) is resident)
        )

    page = await service.page(tenant, limit=limit, after=after, owner=owner, keep=keep)
    cards = [adapter_card(adapter, residency.tell(adapter.latest)) for adapter in page.adapters]
    return JSONResponse(as_json(AdapterList(data=cards, has_more=page.after is not None, last_id=page.after)))


@router.get("/adapters/{name}", response_model=AdapterCard, responses=error_replies((*ANY_ROUTE, 404)))
async def show_adapter(request: Request, name: Name, tenant: CurrentTenant, owner: Owner = None) -> Response:
    """Show an adapter with its aliases; its `ETag` names this state."""
    service: AdapterService = request.app.state.adapters
    residency: ResidencyService = request.app.state.residency
    adapter = await service.describe(tenant, check_name(name), owner)
    card = adapter_card(adapter, residency.tell(adapter.latest))
    return JSONResponse(as_json(card), headers=etag(card.revision))


@router.get("/adapters/{name}/versions", response_model=VersionList, responses=error_replies((*ANY_ROUTE, 404)))
async def list_versions(
    request: Request,
    name: Name,
    tenant: CurrentTenant,
    owner: Owner = None,
    limit: Limit = 100,
    before: Annotated[int, Query(ge=0, le=10**6, description="Only versions below this number.")] = 0,
) -> Response:
    """List an adapter's versions, the newest first."""
    service: AdapterService = request.app.state.adapters
    versions = await service.versions(tenant, check_name(name), owner, before=before, limit=limit + 1)
    cards = [version_card(version) for version in versions[:limit]]
    return JSONResponse(as_json(VersionList(data=cards, has_more=len(versions) > limit)))


@router.get(
    "/adapters/{name}/versions/{version}", response_model=VersionCard, responses=error_replies((*ANY_ROUTE, 404))
)
async def show_version(
    request: Request, name: Name, version: VersionName, tenant: CurrentTenant, owner: Owner = None
) -> Response:
    """Show one version."""
    service: AdapterService = request.app.state.adapters
    found = await service.find(tenant, chosen(name, owner, version))
    return JSONResponse(as_json(version_card(found)), headers={"ETag": f'"{found.digest}"'})


@router.get(
    "/adapters/{name}/versions/{version}/download",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}},
        **error_replies((*ANY_ROUTE, 404, 422)),
    },
)
async def download(
    request: Request, name: Name, version: VersionName, tenant: CurrentTenant, owner: Owner = None
) -> Response:
    """Download a version as a zip of the folder that was published: unpacked, PEFT loads it."""
    service: AdapterService = request.app.state.adapters
    found = await service.find(tenant, chosen(name, owner, version))
    tag = f'"{found.digest}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    held = await service.acquire(tenant, f"{found.tenant}/{found.name}@{found.label}", judge=False)
    disposition = f'attachment; filename="{zip_name(held)}"'
    headers = {"ETag": tag, "Content-Disposition": disposition}
    return StreamingResponse(_sent(service, held), media_type="application/zip", headers=headers)


async def _sent(service: AdapterService, held: Version) -> AsyncIterator[bytes]:
    """Yield the zip, and hold the version until it is sent or the client is gone."""
    try:
        parts = zipped(held)
        while (part := await anyio.to_thread.run_sync(next, parts, None)) is not None:
            yield part
    finally:
        service.release(held)
