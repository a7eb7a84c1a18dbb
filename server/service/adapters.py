"""The life of an adapter: found by name, held while requests use it, moved, deleted."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from server.core import BaseModel
from server.engine.client import EngineClient
from server.errors import AdapterIncompatible, AdapterNotFound, InvalidRequest, WaybillError
from server.formats.judge import AdapterLimits, judge_folder
from server.formats.names import PUBLIC_TENANT, AdapterRef, check_name, check_tenant, parse_reference
from server.formats.spec import AdapterSpec
from server.service.tenants import Tenant
from server.store.cache import Recent
from server.store.pointers import Pointers
from server.store.store import Adapter, AdapterStore
from server.store.version import Version

MAX_LOOKED = 1000
"""Names that one page of a filtered list looks at."""

T = TypeVar("T")
Key = tuple[str, str, int]
"""Tenant, name and number: what no two versions ever share."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a tenant's adapters. `after` asks for the next part, which may be empty; None where there is none."""

    adapters: tuple[Adapter, ...]
    after: str | None


class AdapterService:
    """What requests and the API ask of adapters. Files are touched in threads; the books are kept on the event loop.

    A reference without a tenant means the caller's own adapter, else the public one of that name. What belongs to
    others is not found. Only one's own can be changed.
    """

    def __init__(self, *, store: AdapterStore, engine: EngineClient, base: BaseModel, limits: AdapterLimits) -> None:
        self._store = store
        self._engine = engine
        self._base = base
        self._limits = limits
        self._held: Counter[Key] = Counter()
        self._used: Recent[str, float] = Recent(8192)
        self._doomed: dict[tuple[str, str], dict[Key, Version]] = {}
        self._gone: Recent[Key, bool] = Recent(8192)
        self._judged: Recent[Key, AdapterSpec] = Recent(8192)
        self._purging: set[asyncio.Task[None]] = set()
        self._mourners: list[Callable[[Version], None]] = []

    # Using

    async def acquire(self, tenant: Tenant, reference: str, *, judge: bool = True) -> Version:
        """Return the version that a reference means for this tenant, and hold its files until `release`.

        Raises AdapterNotFound, also for what belongs to others, and, unless `judge` is False, AdapterIncompatible where
        it was published for another base model and does not fit this one.
        """
        version = await self.get(tenant, reference)
        self._hold(version)
        try:
            if self._store.backend.remote:
                await asyncio.to_thread(self._store.fetch, version)
            fit = await self._fit(version) if judge else version
        except BaseException:
            self.release(version)
            raise
        self._used.put(version.digest, time.time())
        return fit

    def release(self, version: Version) -> None:
        """Give back what `acquire` gave; the last one out of a deleted adapter has its files removed."""
        key = _key(version)
        self._store.backend.release(version.digest)
        self._held[key] -= 1
        if self._held[key] <= 0:
            del self._held[key]
            self._purge_unused(version.tenant, version.name)

    def in_flight(self, version: Version) -> int:
        """Return how many requests hold a version."""
        return self._held.get(_key(version), 0)

    def last_used(self, digest: str) -> int | None:
        """Return when a request last asked for a digest, in seconds since the epoch; None where that is not known."""
        at = self._used.get(digest)
        return None if at is None else int(at)

    def is_fetched(self, digest: str) -> bool:
        """Whether a digest's files lie on this machine."""
        return self._store.backend.is_fetched(digest)

    async def get(self, tenant: Tenant, reference: str) -> Version:
        """Return the version that a reference means. Raises AdapterNotFound, also for what belongs to others."""
        return await self.find(tenant, parse_reference(reference))

    async def find(self, tenant: Tenant, reference: AdapterRef) -> Version:
        """Return the version that a parsed reference means. Raises AdapterNotFound, also for what belongs to others."""

        def resolve(owner: str) -> Version:
            return self._store.resolve(
                owner, reference.name, number=reference.number, digest=reference.digest, alias=reference.alias
            )

        return await self._of_owners(tenant, reference, resolve)

    # Looking

    async def describe(self, tenant: Tenant, name: str, owner: str | None = None) -> Adapter:
        """Return an adapter with all that its name points to. Raises AdapterNotFound."""
        return await self._of_owners(tenant, AdapterRef(name, owner), lambda who: self._store.describe(who, name))

    async def versions(
        self, tenant: Tenant, name: str, owner: str | None = None, *, before: int = 0, limit: int | None = None
    ) -> list[Version]:
        """Return up to `limit` versions of an adapter below the number `before`, the newest first.

        Raises AdapterNotFound.
        """

        def found(who: str) -> list[Version]:
            return self._store.versions(who, name, before=before, limit=limit)

        return await self._of_owners(tenant, AdapterRef(name, owner), found)

    async def first(self, tenant: Tenant, limit: int) -> list[Version]:
        """Return the latest version of the first adapters that the tenant can use: its own, then the public ones."""
        found: list[Version] = []
        page = Page((), "")
        while page.after is not None and len(found) < limit:
            page = await self.page(tenant, limit=limit - len(found), after=page.after)
            found += [adapter.latest for adapter in page.adapters]
        return found

    async def page(
        self,
        tenant: Tenant,
        *,
        limit: int,
        after: str = "",
        owner: str | None = None,
        keep: Callable[[Adapter], bool] | None = None,
    ) -> Page:
        """Return up to `limit` of the adapters that the tenant can use, those for which `keep` holds.

        Its own come first, then the public ones; `owner` chooses. `after` is what the page before ended with.
        Raises InvalidRequest for another `after`, and AdapterNotFound for another's adapters.
        """
        owners = [tenant.name, PUBLIC_TENANT] if owner is None else [self._visible(tenant, owner)]
        first, name = _cursor(after, owners)
        found: list[Adapter] = []
        looked = 0
        for who in owners[first:]:
            last: str | None = name
            name = ""
            while last is not None:
                if len(found) == limit or looked >= MAX_LOOKED:
                    return Page(tuple(found), f"{who}/{last}")
                adapters, last = await asyncio.to_thread(self._store.page, who, last, limit - len(found))
                looked += limit - len(found)
                found += [adapter for adapter in adapters if keep is None or keep(adapter)]
        return Page(tuple(found), None)

    # Changing

    async def move_alias(
        self, tenant: Tenant, name: str, alias: str, number: int, revision: int | None
    ) -> tuple[int | None, Pointers]:
        """Let an alias of the tenant's own adapter mean a version; return what it meant before, and the new state.

        Raises AdapterNotFound, InvalidRequest, and RevisionConflict where the name is not at `revision`, or where
        another moved the alias in this moment.
        """
        return await self._move(
            tenant, name, alias, lambda: self._store.move_alias(tenant.name, name, alias, number, revision)
        )

    async def rollback(
        self, tenant: Tenant, name: str, alias: str, revision: int | None
    ) -> tuple[int | None, Pointers]:
        """Let an alias mean what it did before it was moved last. Returns and raises as `move_alias`."""
        return await self._move(tenant, name, alias, lambda: self._store.rollback(tenant.name, name, alias, revision))

    async def remove_alias(self, tenant: Tenant, name: str, alias: str, revision: int | None) -> None:
        """Remove an alias. Raises as `move_alias`."""
        await asyncio.to_thread(self._store.remove_alias, tenant.name, name, alias, revision)

    async def annotate(
        self, tenant: Tenant, name: str, description: str | None, tags: tuple[str, ...] | None, revision: int | None
    ) -> None:
        """Change what is written about the tenant's own adapter; None leaves a part. Raises as `move_alias`."""
        await asyncio.to_thread(
            lambda: self._store.annotate(tenant.name, name, description=description, tags=tags, revision=revision)
        )

    async def delete(self, tenant: Tenant, name: str) -> None:
        """Take the tenant's own adapter out of service now; its files go when the last request on it ends.

        Raises AdapterNotFound, also for what belongs to others and for the public ones.
        """
        versions = await asyncio.to_thread(self._store.versions, tenant.name, check_name(name))
        await asyncio.to_thread(self._store.delete, tenant.name, name)
        self._doom(tenant.name, name, versions)

    async def delete_version(self, tenant: Tenant, name: str, number: int) -> None:
        """As `delete`, for one version. Raises InvalidRequest where an alias means it."""
        version = await asyncio.to_thread(lambda: self._store.resolve(tenant.name, name, number=number))
        await asyncio.to_thread(self._store.delete_version, tenant.name, name, number)
        self._doom(tenant.name, name, [version])

    def on_gone(self, listener: Callable[[Version], None]) -> None:
        """Call `listener` with every version that was deleted, once its files are gone."""
        self._mourners.append(listener)

    async def close(self) -> None:
        """Wait until what was deleted is gone."""
        await asyncio.gather(*self._purging)

    # Inside

    async def _of_owners(self, tenant: Tenant, reference: AdapterRef, look: Callable[[str], T]) -> T:
        """Look with the caller, then with the public, or with whom the reference names."""
        owners = [tenant.name, PUBLIC_TENANT]
        if reference.tenant is not None:
            owners = [self._visible(tenant, reference.tenant, reference)]

        def first() -> T:
            missing = _unknown(str(reference))
            for owner in owners:
                try:
                    return look(owner)
                except AdapterNotFound as error:
                    if error.known:
                        missing = error
            raise missing

        return await asyncio.to_thread(first)

    def _visible(self, tenant: Tenant, owner: str, reference: AdapterRef | None = None) -> str:
        check_tenant(owner, allow_public=True)
        if owner not in (tenant.name, PUBLIC_TENANT):
            raise (
                _unknown(str(reference))
                if reference
                else AdapterNotFound(f"there are no adapters of {owner!r} for you", param="tenant")
            )
        return owner

    async def _move(
        self, tenant: Tenant, name: str, alias: str, change: Callable[[], Pointers]
    ) -> tuple[int | None, Pointers]:
        def moved() -> tuple[int | None, Pointers]:
            before = self._store.describe(tenant.name, name).pointers.alias(alias)
            return before, change()

        return await asyncio.to_thread(moved)

    def _hold(self, version: Version) -> None:
        key = _key(version)
        if key in self._doomed.get((version.tenant, version.name), ()) or self._gone.get(key):
            raise _unknown(f"{version.name}@{version.label}")
        self._held[key] += 1
        self._store.backend.hold(version.digest)

    async def _fit(self, version: Version) -> Version:
        """Judge again what was published for another base model or under other limits."""
        spec = version.spec
        if spec.judged_for != self._base.digest:
            known = self._judged.get(_key(version))
            if known is None:
                known = await asyncio.to_thread(judge_folder, version.folder, self._base, self._limits, published=True)
                self._judged.put(_key(version), known)
            spec = known
        if spec.num_virtual_tokens > self._limits.max_virtual_tokens:
            raise AdapterIncompatible(
                f"adapter {version.name!r} has {spec.num_virtual_tokens} virtual tokens; this server takes at most"
                f" {self._limits.max_virtual_tokens}",
                param="adapter",
            )
        return version if spec is version.spec else dataclasses.replace(version, spec=spec)

    def _doom(self, owner: str, name: str, versions: Iterable[Version]) -> None:
        self._doomed.setdefault((owner, name), {}).update({_key(version): version for version in versions})
        self._purge_unused(owner, name)

    def _purge_unused(self, owner: str, name: str) -> None:
        doomed = self._doomed.get((owner, name))
        if doomed is None or any(key in self._held for key in doomed):
            return
        task = asyncio.get_running_loop().create_task(self._purge(owner, name, doomed))
        self._purging.add(task)
        task.add_done_callback(self._purging.discard)

    async def _purge(self, owner: str, name: str, doomed: dict[Key, Version]) -> None:
        versions = list(doomed.values())
        for version in versions:
            self._gone.put(_key(version), True)
        try:
            await asyncio.to_thread(self._store.purge, owner, name, [version.number for version in versions])
        except WaybillError:
            return  # the sweep at the next start removes them
        for version in versions:
            self._judged.forget(_key(version))
            self._engine.forget(version.digest)
            for listener in self._mourners:
                listener(version)
            doomed.pop(_key(version), None)
        if not doomed and self._doomed.get((owner, name)) is doomed:
            del self._doomed[(owner, name)]


def _key(version: Version) -> Key:
    return version.tenant, version.name, version.number


def _cursor(after: str, owners: list[str]) -> tuple[int, str]:
    """Return the owner, by its place in the list, and the name that a page begins behind."""
    if not after:
        return 0, ""
    owner, slash, name = after.partition("/")
    if not slash or owner not in owners:
        raise InvalidRequest("after is what the page before gave as last_id", param="after")
    return owners.index(owner), check_name(name, param="after") if name else ""


def _unknown(reference: str) -> AdapterNotFound:
    return AdapterNotFound(f"there is no adapter {reference!r}", param="adapter")
