"""Publish an adapter."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import Request
from starlette.responses import JSONResponse, Response

from server.api.adapters.cards import VersionCard, as_json, described, version_card
from server.api.auth import CurrentTenant, protected_router
from server.api.client import unless_gone
from server.api.multipart import Form, read_form
from server.api.openapi import WITH_BODY, error_replies, form_body
from server.api.record import record_of
from server.errors import InvalidRequest
from server.formats.judge import require_known_file
from server.service.admission import Gate
from server.service.tenants import Tenant
from server.service.uploads import UploadService, Verdict

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
        "alias": {"type": "string", "description": "An alias that is to mean the version, beside `latest`."},
        "dry_run": {"type": "boolean", "description": "`true`: judge only, publish nothing. Default: `false`."},
    },
    ["name", "files"],
)


@router.post(
    "/adapters",
    response_model=None,
    status_code=201,
    responses={
        200: {"model": VersionCard},
        201: {"model": VersionCard},
        **error_replies((*WITH_BODY, 404, 422)),
    },
    openapi_extra=_FORM,
)
async def publish(request: Request, tenant: CurrentTenant) -> Response:
    """Publish an adapter: 201 with the new version, 200 with the existing one where its bytes are there already."""
    service: UploadService = request.app.state.uploads
    gate: Gate = request.app.state.gate
    with gate.place():
        async with service.stage() as folder:
            form = await read_form(
                request,
                folder,
                texts=("name", "alias", "dry_run"),
                files="files",
                limit=request.app.state.max_upload,
                accept=_accept,
            )
            name, archive, dry_run = _read(form)
            alias = form.texts.get("alias") or None
            work = service.publish(tenant, name, folder, archive=archive, alias=alias, dry_run=dry_run)
            verdict = await unless_gone(request.receive, work)
            num_bytes = _size(folder) if verdict.version is None else verdict.version.num_bytes
    return _published(request, tenant, name, verdict, num_bytes)


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
        card = VersionCard(**described(tenant.name, name, None, verdict.digest, None, num_bytes, verdict.spec))
        return JSONResponse(as_json(card), headers=headers)
    headers["Location"] = f"/v1/adapters/{name}/versions/{verdict.version.number}"
    return JSONResponse(as_json(version_card(verdict.version)), 201 if verdict.created else 200, headers)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
