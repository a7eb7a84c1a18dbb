"""`/v1/adapters`: publish, list, look at and delete adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Path as PathParameter
from fastapi import Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from server.api.auth import CurrentTenant, protected_router
from server.api.client import unless_gone
from server.api.multipart import Form, read_form
from server.api.openapi import ANY_ROUTE, WITH_BODY, error_replies, form_body
from server.api.record import record_of
from server.core import AdapterKind
from server.errors import InvalidRequest
from server.formats.judge import require_known_file
from server.formats.spec import AdapterSpec
from server.service.adapters import AdapterService, Verdict
from server.service.admission import Gate
from server.service.tenants import Tenant
from server.store.version import Version

router = protected_router("/v1")

_ARCHIVE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.zip")
_FORM = form_body(
    {
        "name": {"type": "string", "description": "The adapter's name; it becomes yours."},
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "The adapter's files, each under its own name, or one `.zip` of their folder.",
        },
        "dry_run": {"type": "boolean", "description": "`true`: judge only, publish nothing. Default: `false`."},
    },
    ["name", "files"],
)


class AdapterCard(BaseModel):
    """One version of an adapter. `version` and `created` are null for a dry run."""

    name: str
    tenant: str
    version: str | None
    digest: str
    kind: AdapterKind
    num_virtual_tokens: int
    bytes: int
    created: int | None
    template: str | None = None
    fields: list[str] | None = None
    tasks: list[str | int] | None = None
    warnings: list[str] | None = None


class AdapterList(BaseModel):
    """What a tenant can use."""

    object: Literal["list"] = "list"
    data: list[AdapterCard]


Reference = Annotated[str, PathParameter(max_length=200, description="`name` or `tenant/name`, also `@v3`.")]


@router.post(
    "/adapters",
    response_model=None,
    status_code=201,
    responses={
        200: {"model": AdapterCard},
        201: {"model": AdapterCard},
        **error_replies((*WITH_BODY, 404, 422)),
    },
    openapi_extra=_FORM,
)
async def publish(request: Request, tenant: CurrentTenant) -> Response:
    """Publish an adapter: 201 with the new version, 200 with the existing one where its bytes are there already."""
    service: AdapterService = request.app.state.adapters
    gate: Gate = request.app.state.gate
    with gate.place():
        async with service.stage() as folder:
            form = await read_form(
                request,
                folder,
                texts=("name", "dry_run"),
                files="files",
                limit=request.app.state.max_upload,
                accept=_accept,
            )
            name, archive, dry_run = _read(form)
            work = service.publish(tenant, name, folder, archive=archive, dry_run=dry_run)
            verdict = await unless_gone(request.receive, work)
            num_bytes = _size(folder) if verdict.version is None else verdict.version.num_bytes
    return _published(request, tenant, name, verdict, num_bytes)


@router.get("/adapters", response_model_exclude_none=True, responses=error_replies(ANY_ROUTE))
async def list_adapters(request: Request, tenant: CurrentTenant) -> AdapterList:
    """List your adapters and the public ones, each at its latest version."""
    service: AdapterService = request.app.state.adapters
    return AdapterList(data=[_card(version) for version in await service.list(tenant)])


@router.get(
    "/adapters/{name:path}",
    response_model=None,
    responses={200: {"model": AdapterCard}, **error_replies((*ANY_ROUTE, 404))},
)
async def show_adapter(request: Request, name: Reference, tenant: CurrentTenant) -> Response:
    """Show one adapter, or one version of it."""
    service: AdapterService = request.app.state.adapters
    version = await service.get(tenant, name)
    return JSONResponse(_json(_card(version)), headers={"ETag": f'"{version.digest}"'})


@router.delete("/adapters/{name:path}", status_code=204, responses=error_replies((*ANY_ROUTE, 404)))
async def delete_adapter(request: Request, name: Reference, tenant: CurrentTenant) -> None:
    """Delete one of your adapters with all its versions. Requests that run finish."""
    service: AdapterService = request.app.state.adapters
    await service.delete(tenant, name)


def _accept(filename: str) -> None:
    if _ARCHIVE.fullmatch(filename) is None:
        require_known_file(filename)


def _read(form: Form) -> tuple[str, str | None, bool]:
    """Return name, archive and dry_run. Raises InvalidRequest."""
    name, flag = form.texts.get("name", ""), form.texts.get("dry_run", "false").lower()
    if not name:
        raise InvalidRequest("name is needed: the adapter's name, as a text part", param="name")
    if flag not in ("true", "false", "1", "0"):
        raise InvalidRequest("dry_run is true or false", param="dry_run")
    if not form.files:
        raise InvalidRequest("files are needed: the adapter's files, or one zip of its folder", param="files")
    archives = [file for file in form.files if _ARCHIVE.fullmatch(file)]
    if archives and len(form.files) > 1:
        raise InvalidRequest("send either one zip or the files themselves", param="files")
    return name, (archives[0] if archives else None), flag in ("true", "1")


def _published(request: Request, tenant: Tenant, name: str, verdict: Verdict, num_bytes: int) -> Response:
    record = record_of(request.scope)
    record.adapter, record.digest = name, verdict.digest
    headers = {"ETag": f'"{verdict.digest}"'}
    if verdict.version is None:
        card = _describe(tenant.name, name, None, verdict.digest, None, num_bytes, verdict.spec)
        return JSONResponse(_json(card), headers=headers)
    headers["Location"] = f"/v1/adapters/{name}@{verdict.version.label}"
    return JSONResponse(_json(_card(verdict.version)), 201 if verdict.created else 200, headers)


def _card(version: Version) -> AdapterCard:
    return _describe(
        version.tenant,
        version.name,
        version.label,
        version.digest,
        version.created,
        version.num_bytes,
        version.spec,
    )


def _describe(
    tenant: str, name: str, version: str | None, digest: str, created: int | None, num_bytes: int, spec: AdapterSpec
) -> AdapterCard:
    names = {index: task for task, index in spec.tasks}
    return AdapterCard(
        name=name,
        tenant=tenant,
        version=version,
        digest=digest,
        kind=spec.kind,
        num_virtual_tokens=spec.num_virtual_tokens,
        bytes=num_bytes,
        created=created,
        template=None if spec.template is None else spec.template.source,
        fields=None if spec.template is None else list(spec.template.field_names),
        tasks=[names.get(index, index) for index in range(spec.num_tasks)] or None,
        warnings=list(spec.warnings) or None,
    )


def _json(card: AdapterCard) -> dict[str, Any]:
    return card.model_dump(mode="json", exclude_none=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
