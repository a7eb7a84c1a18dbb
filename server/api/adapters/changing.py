"""Move what an adapter's name points to, describe it, and delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from pydantic import Discriminator, Field, Tag
from starlette.responses import JSONResponse, Response

from server.api.adapters.cards import AdapterCard, AliasMove, adapter_card, as_json
from server.api.adapters.requests import Alias, IfMatch, Name, VersionName, chosen, etag, revision_of
from server.api.auth import CurrentTenant, protected_router
from server.api.body import read_json
from server.api.openapi import ANY_ROUTE, WITH_BODY, error_replies, json_body
from server.api.strict import Strict
from server.formats.names import check_alias, check_name
from server.service.adapters import AdapterService
from server.service.residency import ResidencyService

router = protected_router("/v1")

MAX_BODY = 64 * 1024

Label = Annotated[str, Field(min_length=1, max_length=64)]


class Description(Strict):
    """What is written about an adapter; what is left out stays as it is."""

    description: str | None = Field(None, max_length=2000, description="What it does, for people.")
    tags: list[Label] | None = Field(
        None, max_length=32, fail_fast=True, description="Words to find it by, up to 64 characters each."
    )


class AliasTarget(Strict):
    """The version that an alias is to mean: `3`, `v3`, another alias, or a digest."""

    version: Annotated[
        Annotated[int, Field(ge=1, le=999_999), Tag("<number>")]
        | Annotated[str, Field(min_length=1, max_length=80), Tag("<text>")],
        Discriminator(lambda version: "<number>" if isinstance(version, int) else "<text>"),
    ] = Field(description="A number (`3` or `v3`), another alias, or a digest.")


@router.patch(
    "/adapters/{name}",
    response_model=AdapterCard,
    responses=error_replies((*WITH_BODY, 404, 412)),
    openapi_extra=json_body(Description),
)
async def describe_adapter(request: Request, name: Name, tenant: CurrentTenant, if_match: IfMatch = None) -> Response:
    """Change the description and the tags of one of your adapters."""
    service: AdapterService = request.app.state.adapters
    residency: ResidencyService = request.app.state.residency
    revision = revision_of(if_match)
    body = await read_json(request, Description, MAX_BODY)
    tags = None if body.tags is None else tuple(dict.fromkeys(body.tags))
    await service.annotate(tenant, check_name(name), body.description, tags, revision)
    adapter = await service.describe(tenant, name, tenant.name)
    card = adapter_card(adapter, residency.tell(adapter.latest))
    return JSONResponse(as_json(card), headers=etag(card.revision))


@router.delete("/adapters/{name}", status_code=204, responses=error_replies((*ANY_ROUTE, 404)))
async def delete_adapter(request: Request, name: Name, tenant: CurrentTenant) -> None:
    """Delete one of your adapters with all its versions. Requests that run finish; new ones get 404."""
    service: AdapterService = request.app.state.adapters
    await service.delete(tenant, check_name(name))


@router.delete("/adapters/{name}/versions/{version}", status_code=204, responses=error_replies((*ANY_ROUTE, 404)))
async def delete_version(request: Request, name: Name, version: VersionName, tenant: CurrentTenant) -> None:
    """Delete one version that no alias means. Requests that run finish; new ones get 404."""
    service: AdapterService = request.app.state.adapters
    found = await service.find(tenant, chosen(name, tenant.name, version))
    await service.delete_version(tenant, name, found.number)


@router.put(
    "/adapters/{name}/aliases/{alias}",
    response_model=AliasMove,
    responses=error_replies((*WITH_BODY, 404, 412)),
    openapi_extra=json_body(AliasTarget),
)
async def move_alias(
    request: Request, name: Name, alias: Alias, tenant: CurrentTenant, if_match: IfMatch = None
) -> Response:
    """Let an alias of one of your adapters mean a version. `latest` can be moved too; the next publish moves it on."""
    service: AdapterService = request.app.state.adapters
    revision = revision_of(if_match)
    body = await read_json(request, AliasTarget, MAX_BODY)
    target = await service.find(tenant, chosen(name, tenant.name, str(body.version)))
    before, state = await service.move_alias(tenant, name, check_alias(alias), target.number, revision)
    return _moved(alias, before, target.number, state.revision)


@router.delete("/adapters/{name}/aliases/{alias}", status_code=204, responses=error_replies((*ANY_ROUTE, 404, 412)))
async def remove_alias(
    request: Request, name: Name, alias: Alias, tenant: CurrentTenant, if_match: IfMatch = None
) -> None:
    """Remove an alias of one of your adapters; the version that it means stays."""
    service: AdapterService = request.app.state.adapters
    await service.remove_alias(tenant, check_name(name), check_alias(alias), revision_of(if_match))


@router.post(
    "/adapters/{name}/aliases/{alias}:rollback",
    response_model=AliasMove,
    responses=error_replies((*ANY_ROUTE, 404, 412)),
)
async def rollback(
    request: Request, name: Name, alias: Alias, tenant: CurrentTenant, if_match: IfMatch = None
) -> Response:
    """Let an alias mean what it did before it was moved last. Done twice, it means what it did at first."""
    service: AdapterService = request.app.state.adapters
    before, state = await service.rollback(tenant, check_name(name), check_alias(alias), revision_of(if_match))
    return _moved(alias, before, state.alias(alias) or 0, state.revision)


def _moved(alias: str, before: int | None, number: int, revision: int) -> Response:
    move = AliasMove(
        alias=alias, before=None if before is None else f"v{before}", version=f"v{number}", revision=revision
    )
    return JSONResponse(move.model_dump(mode="json"), headers=etag(revision))
