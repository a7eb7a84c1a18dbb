"""Which adapters are in the engine's memory, and what people want to be there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from enum import StrEnum

from server.core import BaseModel, PrefixKey, SamplingParams
from server.engine.client import RESTART_WAIT, EngineClient
from server.engine.messages import StepReport
from server.errors import AdapterNotFound, InvalidRequest, WaybillError
from server.service.adapters import AdapterService
from server.service.prompting import Prompter
from server.service.sources import filled, source_of
from server.service.tenants import Tenant
from server.store.version import Version

MAX_PINS = 16
"""Versions that one tenant can have pinned."""

MAX_PRELOADS = 4
"""Preloads that are under way at once."""

RESTORE_SECONDS = 5.0
"""How long after a pinned adapter has left the engine's memory it is brought back."""

EVICT_WAIT = 1.0
"""Seconds that an eviction is waited for; what sequences use goes later."""

logger = logging.getLogger(__name__)


class Level(StrEnum):
    """Where the nearest copy of a version is."""

    KV = "kv"  # in the engine's memory: a request starts at once
    DISK = "disk"  # on this machine
    STORE = "store"  # in the object store alone


@dataclass(frozen=True, slots=True)
class Residency:
    """Where a version is on this server, and who uses it. `last_used` in seconds since the epoch, None if never."""

    level: Level
    pinned: bool
    in_flight: int
    last_used: int | None


class ResidencyService:
    """Follows what the engine holds, and pins, preloads and evicts on demand.

    A pinned version is loaded at once, is evicted last of all, and comes back when it had to go or the engine started
    anew. Pins belong to this process: they end with it.
    """

    def __init__(self, *, engine: EngineClient, adapters: AdapterService, prompter: Prompter, base: BaseModel) -> None:
        self._engine = engine
        self._adapters = adapters
        self._prompter = prompter
        self._base = base
        self._resident: dict[str, set[PrefixKey]] = {}
        self._pins: dict[tuple[str, str, int], Version] = {}
        self._preloads = asyncio.Semaphore(MAX_PRELOADS)
        self._moved = asyncio.Event()
        self._restoring: asyncio.Task[None] | None = None
        adapters.on_gone(self.unpin)

    def is_resident(self, digest: str) -> bool:
        """Whether the engine's memory holds a prefix of this digest."""
        return digest in self._resident

    def is_pinned(self, version: Version) -> bool:
        """Whether somebody wants this version to stay."""
        return (version.tenant, version.name, version.number) in self._pins

    def tell(self, version: Version) -> Residency:
        """Return where a version is now."""
        level = Level.DISK if self._adapters.is_fetched(version.digest) else Level.STORE
        return Residency(
            Level.KV if self.is_resident(version.digest) else level,
            self.is_pinned(version),
            self._adapters.in_flight(version),
            self._adapters.last_used(version.digest),
        )

    async def preload(self, tenant: Tenant, version: Version) -> None:
        """Bring a version into the engine's memory, where its next request finds it.

        Of a multitask adapter that is task 0. Raises what a request with the adapter would.
        """
        async with self._preloads:
            held = await self._adapters.acquire(tenant, f"{version.tenant}/{version.name}@{version.label}")
            try:
                prompt = await asyncio.to_thread(filled, self._prompter, held.spec, "a")
                await self._engine.wait_ready(RESTART_WAIT)
                source = source_of(self._base, held, prompt)
                stream = self._engine.submit(prompt.tokens, SamplingParams(max_tokens=1), source)
                try:
                    async for _ in stream:
                        pass
                finally:
                    stream.abort()
            finally:
                self._adapters.release(held)

    async def pin(self, tenant: Tenant, version: Version) -> None:
        """Preload a version and keep it. Raises InvalidRequest for one pin too many, and as `preload`."""
        if not self.is_pinned(version):
            mine = sum(owner == version.tenant for owner, _, _ in self._pins)
            if mine >= MAX_PINS:
                raise InvalidRequest(f"{MAX_PINS} adapter versions are pinned; unpin one first", param="pinned")
        await self.preload(tenant, version)
        self._pins[version.tenant, version.name, version.number] = version
        self._engine.pin(version.digest, True)

    def unpin(self, version: Version) -> None:
        """Let a version be evicted as any other."""
        self._pins.pop((version.tenant, version.name, version.number), None)
        if all(pinned.digest != version.digest for pinned in self._pins.values()):
            self._engine.pin(version.digest, False)

    async def evict(self, version: Version) -> None:
        """Drop a version from the engine's memory as soon as no sequence uses it; wait a moment for that."""
        self._engine.forget(version.digest)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVICT_WAIT):
                while self.is_resident(version.digest):
                    self._moved.clear()
                    await self._moved.wait()

    def observe_step(self, report: StepReport) -> None:
        """Take in what came into the engine's memory, and what left."""
        for moved in report.moved:
            keys = self._resident.setdefault(moved.key.adapter, set())
            (keys.add if moved.resident else keys.discard)(moved.key)
            if not keys:
                del self._resident[moved.key.adapter]
                self._restore_later(moved.key.adapter)
        if report.moved:
            self._moved.set()

    def observe_death(self) -> None:
        """The engine starts anew, with nothing in memory."""
        self._resident.clear()
        self._restore_later()

    async def close(self) -> None:
        """Bring nothing back any more."""
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)

    def _restore_later(self, digest: str | None = None) -> None:
        wanted = any(digest in (None, version.digest) for version in self._pins.values())
        if wanted and (self._restoring is None or self._restoring.done()):
            self._restoring = asyncio.get_running_loop().create_task(self._restore())

    async def _restore(self) -> None:
        """Bring back what is pinned and gone, until nothing is."""
        while missing := [version for version in self._pins.values() if not self.is_resident(version.digest)]:
            await asyncio.sleep(RESTORE_SECONDS)
            for version in missing:
                try:
                    await self._engine.wait_ready(RESTART_WAIT)
                    self._engine.pin(version.digest, True)
                    await self.preload(Tenant(version.tenant), version)
                except AdapterNotFound:
                    self.unpin(version)
                except WaybillError as error:
                    logger.warning("a pinned adapter is not back yet: %s", error.code)
