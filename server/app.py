"""The composition root: builds the rooms, connects them, and gives the ASGI app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from server.api import errors, generate, health, openapi, tokenize
from server.api.adapters import changing, publishing, reading, residency, verifying
from server.api.adapters.changing import AliasTarget, Description
from server.api.adapters.residency import ResidencyChange
from server.api.middleware import LoopbackOnly, RequestLog
from server.api.openai import models as openai_models
from server.api.openai import routes as openai_routes
from server.api.openai.chat import ChatRequest
from server.api.openai.completions import CompletionRequest
from server.api.schemas import GenerateRequest
from server.api.tgi import info as tgi_info
from server.api.tgi import routes as tgi_routes
from server.api.tgi.replies import TgiEvent
from server.api.tgi.schemas import TgiRequest
from server.api.tokenize import DetokenizeRequest, TokenizeRequest
from server.engine.client import EngineClient, ProcessEngine
from server.formats.judge import AdapterLimits
from server.metrics import Metrics
from server.service.adapters import AdapterService
from server.service.admission import Gate
from server.service.generation import GenerationService
from server.service.prompting import Prompter
from server.service.residency import ResidencyService
from server.service.tenants import KeyRing
from server.service.tokenizer import Tokenizer
from server.service.tokenizing import TokenizingService
from server.service.uploads import UploadService
from server.service.verifying import VerificationService
from server.settings import Plan, Settings
from server.store.opening import open_store

_DESCRIBED = (
    GenerateRequest, CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest, TgiRequest, TgiEvent,
    Description, AliasTarget, ResidencyChange,
)  # fmt: skip
"""Models that FastAPI does not see: the bodies that routes read themselves, and what events hold."""


SWEEP_GRACE = 600.0
"""Seconds for which the sweep at the start leaves a name alone that has just changed."""


def create_app(settings: Settings, plan: Plan, engine: EngineClient | None = None) -> FastAPI:
    """Return the whole server as an ASGI app; its lifespan starts the engine and ends it.

    `engine` is a fake in tests. What the routes need stands in `app.state`: keys, gate, engine, base, created (Unix
    time), tokenizer, metrics, generation, tokenizing, adapters, residency, verification, uploads, max_upload,
    idle_timeout; `refusal` is why the engine would not start.
    """
    base = plan.engine.base
    engine = engine or ProcessEngine(plan.engine)
    tokenizer = Tokenizer(Path(plan.engine.model_path))
    store = open_store(settings.store, cache=settings.store_cache, cache_bytes=settings.store_cache_size)
    metrics = Metrics(base.name)
    gate = Gate(plan.max_open)
    limits = AdapterLimits(plan.engine.max_virtual_tokens)
    prompter = Prompter(tokenizer, base)
    adapter_service = AdapterService(store=store, engine=engine, base=base, limits=limits)
    residency_service = ResidencyService(engine=engine, adapters=adapter_service, prompter=prompter, base=base)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(store.sweep_staging)
        # Names are put right beside the traffic: twenty thousand of them would hold up the start.
        sweeping = None if store.backend.remote else asyncio.create_task(asyncio.to_thread(store.sweep, SWEEP_GRACE))
        try:
            await engine.start()
        except RuntimeError as error:
            app.state.refusal = str(error)
            raise
        engine.on_report(metrics.observe_step)
        engine.on_report(residency_service.observe_step)
        engine.on_death(metrics.observe_engine_death)
        engine.on_death(residency_service.observe_death)
        try:
            yield
        finally:
            if sweeping is not None:
                await sweeping
            await residency_service.close()
            await adapter_service.close()
            await engine.close()

    app = FastAPI(
        title="Waybill",
        version=version("waybill"),
        description="One frozen language model, many tenants' prompt-learning adapters.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.refusal = ""
    app.state.keys = KeyRing(settings.keys)
    app.state.gate = gate
    app.state.engine = engine
    app.state.base = base
    app.state.created = int(time.time())
    app.state.tokenizer = tokenizer
    app.state.metrics = metrics
    app.state.adapters = adapter_service
    app.state.residency = residency_service
    app.state.verification = VerificationService(engine=engine, adapters=adapter_service, prompter=prompter, base=base)
    app.state.uploads = UploadService(store=store, engine=engine, base=base, limits=limits, metrics=metrics)
    app.state.max_upload = plan.max_upload
    app.state.idle_timeout = settings.idle_timeout
    app.state.tokenizing = TokenizingService(
        tokenizer=tokenizer, prompter=prompter, adapters=adapter_service, base=base, gate=gate
    )
    app.state.generation = GenerationService(
        engine=engine,
        adapters=adapter_service,
        prompter=prompter,
        tokenizer=tokenizer,
        base=base,
        gate=gate,
        metrics=metrics,
    )
    _add_routes(app)
    if settings.keys is None:
        app.add_middleware(LoopbackOnly)
    app.add_middleware(RequestLog, metrics=metrics)
    return app


def _add_routes(app: FastAPI) -> None:
    """Everything is behind a key, except probes and metrics."""
    adapters = (publishing, reading, changing, residency, verifying)
    for part in (generate, *adapters, openai_routes, openai_models, tokenize, health, tgi_routes, tgi_info):
        app.include_router(part.router)
    app.include_router(tgi_info.open_router)
    errors.install(app)
    openapi.install(app, _DESCRIBED)
