"""`GET /v1/models`: the base model that everything here runs on."""

from __future__ import annotations

from typing import Literal

from fastapi import Request
from pydantic import BaseModel

from server import core
from server.api.auth import protected_router
from server.engine.client import EngineClient

router = protected_router("/v1")


class ModelCard(BaseModel):
    """One model, in the shape that OpenAI's clients know; `digest` is what adapters are bound to."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "waybill"
    family: str
    digest: str
    max_model_len: int
    vocab_size: int


class ModelList(BaseModel):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/models")
async def models(request: Request) -> ModelList:
    """List the models."""
    base: core.BaseModel = request.app.state.base
    engine: EngineClient = request.app.state.engine
    card = ModelCard(
        id=base.name,
        family=base.family,
        digest=base.digest,
        max_model_len=engine.hello.max_model_len,
        vocab_size=base.vocab_size,
    )
    return ModelList(data=[card])
