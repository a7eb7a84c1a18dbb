"""`GET /info`, and the health routes of TGI and LoRAX."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from server import core
from server.api.auth import protected_router
from server.api.health import require_ready
from server.api.tgi.schemas import MAX_STOPS
from server.api.tgi.words import HealthError, HealthRoute, TgiRoute, tgi_replies
from server.engine.client import EngineClient
from server.service.admission import Gate

router = protected_router(route_class=TgiRoute)
open_router = APIRouter(route_class=HealthRoute)

_HEALTH = {**tgi_replies(500), 503: {"model": HealthError}}


class TgiInfo(BaseModel):
    """What is served, in the fields of TGI's and LoRAX's `/info` that mean something here. Lengths in tokens.

    `max_input_length` is LoRAX's name of `max_input_tokens`. `model_sha` is the digest that adapters are bound to.
    """

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: Literal["text-generation"] = "text-generation"
    max_concurrent_requests: int
    max_best_of: Literal[1] = 1
    max_stop_sequences: int = MAX_STOPS
    max_input_tokens: int
    max_input_length: int
    max_total_tokens: int
    max_batch_total_tokens: int
    router: Literal["waybill"] = "waybill"
    version: str


@router.get("/info", responses=tgi_replies(401, 422, 500))
async def info(request: Request) -> TgiInfo:
    """Tell what is served, and its limits."""
    base: core.BaseModel = request.app.state.base
    engine: EngineClient = request.app.state.engine
    gate: Gate = request.app.state.gate
    hello = engine.hello
    return TgiInfo(
        model_id=base.name,
        model_sha=base.digest,
        model_dtype=f"torch.{hello.dtype}",
        model_device_type=hello.device,
        max_concurrent_requests=gate.limit,
        max_input_tokens=hello.max_model_len - 1,
        max_input_length=hello.max_model_len - 1,
        max_total_tokens=hello.max_model_len,
        max_batch_total_tokens=hello.num_blocks * hello.block_size,
        version=version("waybill"),
    )


@open_router.get("/health", responses=_HEALTH)
@open_router.get("/ping", responses=_HEALTH)
async def health(request: Request) -> dict[str, str]:
    """Say whether new work is taken."""
    require_ready(request)
    return {}
