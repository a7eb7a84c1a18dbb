"""Parity on demand: does an adapter compute here what it computes on the base model alone?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from server.core import BaseModel, Parity
from server.engine.client import RESTART_WAIT, EngineClient
from server.errors import Overloaded
from server.service.adapters import AdapterService
from server.service.prompting import Prompter
from server.service.sources import filled, source_of
from server.service.tenants import Tenant
from server.store.version import Version

TEXT = "Ask for the way, count the stations, write it down: the parcel is for the last house on the left."
"""The prompt of a verification, or what stands in every field of the adapter's template."""

NEW_TOKENS = 8
"""Greedy tokens that follow it, so that single steps are compared too."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found; `dtype` is what the base model is served in."""

    version: Version
    parity: Parity
    dtype: str


class VerificationService:
    """Verifies one adapter at a time: every other sequence waits while the model runs alone."""

    def __init__(self, *, engine: EngineClient, adapters: AdapterService, prompter: Prompter, base: BaseModel) -> None:
        self._engine = engine
        self._adapters = adapters
        self._prompter = prompter
        self._base = base
        self._running = asyncio.Lock()

    async def verify(self, tenant: Tenant, version: Version) -> Verified:
        """Compare a version's served logits with the base model's own under eager attention, one sequence, no caches.

        A multitask adapter is verified by its task 0. Raises Overloaded beside another verification, and what a request
        with the adapter would.
        """
        if self._running.locked():
            raise Overloaded("another adapter is being verified; try again", retry_after=2)
        async with self._running:
            held = await self._adapters.acquire(tenant, f"{version.tenant}/{version.name}@{version.label}")
            try:
                prompt = await asyncio.to_thread(filled, self._prompter, held.spec, TEXT)
                await self._engine.wait_ready(RESTART_WAIT)
                source = source_of(self._base, held, prompt)
                room = self._engine.hello.max_model_len - source.prefix_len - len(prompt.tokens)
                new_tokens = max(1, min(NEW_TOKENS, room))
                parity = await self._engine.verify(prompt.tokens, new_tokens, source)
                return Verified(held, parity, self._engine.hello.dtype)
            finally:
                self._adapters.release(held)
