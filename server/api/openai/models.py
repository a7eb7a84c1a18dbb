"""`GET /v1/models`: the base model, and the adapters on it as models of their own."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Request
from pydantic import BaseModel

from server import core
from server.api.auth import CurrentTenant, protected_router
from server.api.openai.selection import adapter_of, reraised
from server.api.openapi import ANY_ROUTE, error_replies
from server.engine.client import EngineClient
from server.errors import WaybillError
from server.service.adapters import AdapterService
from server.service.tenants import Tenant
from server.store.version import Version

router = protected_router("/v1")

MAX_LISTED = 1000
"""Adapters in the list of models, which has no pages; `/v1/adapters` has."""

Model = Annotated[str, Path(max_length=400, description="The base model, an adapter, or `base:adapter`.")]


class ModelCard(BaseModel):
    """One model, in the shape that clients of OpenAI and vLLM know.

    An adapter's `parent` is the base model and its `root` the very version; `digest` is what was trained. The base
    model has no parent, and its `digest` is what adapters are bound to.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    digest: str
    family: str
    vocab_size: int
    num_virtual_tokens: int


class ModelList(BaseModel):
    """What a tenant can name as `model`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/models", responses=error_replies(ANY_ROUTE))
async def models(request: Request, tenant: CurrentTenant) -> ModelList:
    """List the base model, and the first thousand adapters that you can use, each at its latest version."""
    service: AdapterService = request.app.state.adapters
    cards = [_base_card(request)]
    taken: set[str] = {cards[0].id}
    for version in await service.first(tenant, MAX_LISTED):
        name = _shortest(version, tenant, taken)
        taken.add(name)
        cards.append(_adapter_card(request, version, name))
    return ModelList(data=cards)


@router.get("/models/{model:path}", responses=error_replies((*ANY_ROUTE, 404)))
async def model(request: Request, model: Model, tenant: CurrentTenant) -> ModelCard:
    """Show one model."""
    service: AdapterService = request.app.state.adapters
    try:
        reference = adapter_of(model, request.app.state.base.name)
        if reference is None:
            return _base_card(request)
        return _adapter_card(request, await service.get(tenant, reference), model)
    except WaybillError as error:
        raise reraised(error, model) from None


def _shortest(version: Version, tenant: Tenant, taken: set[str]) -> str:
    """Return the name by which the tenant reaches the version: a public adapter may stand behind one of its own."""
    return version.name if version.name not in taken else f"{version.tenant}/{version.name}"


def _base_card(request: Request) -> ModelCard:
    base: core.BaseModel = request.app.state.base
    engine: EngineClient = request.app.state.engine
    return ModelCard(
        id=base.name,
        created=request.app.state.created,
        owned_by="waybill",
        root=base.name,
        parent=None,
        max_model_len=engine.hello.max_model_len,
        digest=base.digest,
        family=base.family,
        vocab_size=base.vocab_size,
        num_virtual_tokens=0,
    )


def _adapter_card(request: Request, version: Version, name: str) -> ModelCard:
    base: core.BaseModel = request.app.state.base
    engine: EngineClient = request.app.state.engine
    return ModelCard(
        id=name,
        created=version.created,
        owned_by=version.tenant,
        root=f"{version.tenant}/{version.name}@{version.label}",
        parent=base.name,
        max_model_len=engine.hello.max_model_len,
        digest=version.digest,
        family=base.family,
        vocab_size=base.vocab_size,
        num_virtual_tokens=version.spec.num_virtual_tokens,
    )
