"""The life of an adapter: published, found by name, held while requests use it, deleted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from server.core import AdapterSource, BaseModel, PrefixKey, SamplingParams
from server.engine.client import EngineClient
from server.errors import AdapterIncompatible, AdapterNotFound, AdapterRejected, Overloaded, WaybillError
from server.formats.archive import unpack_zip
from server.formats.judge import AdapterLimits, judge_folder, max_folder_bytes
from server.formats.names import PUBLIC_TENANT, AdapterRef, check_name, parse_reference
from server.formats.spec import AdapterSpec
from server.metrics import Metrics
from server.service.tenants import Tenant
from server.store.digest import files_digest
from server.store.durable import disk
from server.store.store import AdapterStore
from server.store.version import Version

MAX_UPLOADS = 4
"""Uploads that are read and judged at once."""

T = TypeVar("T")

ENGINE_WAIT = 30.0
"""Seconds that an upload waits for an engine that is being restarted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an upload. `version` is None for a dry run, `created` False where the bytes were there already."""

    spec: AdapterSpec
    digest: str
    version: Version | None = None
    created: bool = False


class AdapterService:
    """What the API asks of adapters. Files are touched in threads; the books are kept on the event loop."""

    def __init__(
        self,
        *,
        store: AdapterStore,
        engine: EngineClient,
        base: BaseModel,
        limits: AdapterLimits,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._engine = engine
        self._base = base
        self._limits = limits
        self._metrics = metrics
        self._uploads = 0
        self._held: Counter[Path] = Counter()
        self._doomed: dict[tuple[str, str], dict[Path, str]] = {}
        self._judged: dict[Path, AdapterSpec] = {}
        self._purging: set[asyncio.Task[None]] = set()

    # Using

    async def acquire(self, tenant: Tenant, reference: str) -> Version:
        """Return the version that a reference means for this tenant, and hold its files until `release`.

        Raises AdapterNotFound, also for what belongs to others, and AdapterIncompatible where it was published for
        another base model and does not fit this one.
        """
        version = await self._fit(await self.get(tenant, reference))
        if version.folder in self._doomed.get((version.tenant, version.name), ()):
            raise _unknown(reference)
        self._held[version.folder] += 1
        return version

    def release(self, version: Version) -> None:
        """Give back what `acquire` gave; the last one out of a deleted adapter has its files removed."""
        self._held[version.folder] -= 1
        if self._held[version.folder] <= 0:
            del self._held[version.folder]
            self._purge_unused(version.tenant, version.name)

    async def get(self, tenant: Tenant, reference: str) -> Version:
        """Return the version that a reference means: the caller's own adapter, else the public one of that name.

        Raises AdapterNotFound, also for what belongs to others.
        """
        parsed = parse_reference(reference)
        owners = (tenant.name, PUBLIC_TENANT) if parsed.tenant is None else (parsed.tenant,)
        if not {tenant.name, PUBLIC_TENANT}.issuperset(owners):
            raise _unknown(reference)
        return await asyncio.to_thread(self._resolve, owners, parsed)

    async def list(self, tenant: Tenant) -> list[Version]:
        """Return the latest version of each adapter that the tenant can use: its own, then the public ones."""
        owners = dict.fromkeys((tenant.name, PUBLIC_TENANT))
        return [version for owner in owners for version in await asyncio.to_thread(self._store.list, owner)]

    # Publishing

    @asynccontextmanager
    async def stage(self) -> AsyncIterator[Path]:
        """Give a new folder to receive an upload in; nothing is left of it afterwards.

        Raises Overloaded, and turns what the disk refuses meanwhile into Unavailable or StoreFull.
        """
        with self._upload_place():
            async with self._staged() as folder:
                yield folder

    async def publish(
        self, tenant: Tenant, name: str, folder: Path, *, archive: str | None = None, dry_run: bool = False
    ) -> Verdict:
        """Judge the staged adapter and make it the next version of the tenant's `name`.

        `archive` names a zip in `folder` that holds the adapter, instead of the folder itself. Raises AdapterRejected,
        AdapterIncompatible, InvalidRequest.
        """
        try:
            check_name(name)
            if archive is None:
                verdict = await self._publish(tenant, name, folder, dry_run)
            else:
                async with self._staged() as unpacked:
                    size = max_folder_bytes(self._base, self._limits)
                    await _undisturbed(lambda: unpack_zip(folder / archive, unpacked, size))
                    verdict = await self._publish(tenant, name, unpacked, dry_run)
        except WaybillError:
            self._metrics.observe_publish("refused")
            raise
        self._metrics.observe_publish(
            "checked" if dry_run else "created" if verdict.created else "existing",
        )
        return verdict

    async def delete(self, tenant: Tenant, name: str) -> None:
        """Take the tenant's own adapter out of service now; its files go when the last request on it ends.

        Raises AdapterNotFound, also for what belongs to others and for the public ones.
        """
        parsed = parse_reference(name, param="name")
        if parsed.tenant not in (None, tenant.name) or parsed.number or parsed.digest:
            raise _unknown(name)
        owner, own = tenant.name, parsed.name
        versions = await asyncio.to_thread(self._store.versions, owner, own)
        await asyncio.to_thread(self._store.delete, owner, own)
        doomed = self._doomed.setdefault((owner, own), {})
        doomed.update({version.folder: version.digest for version in versions})
        self._purge_unused(owner, own)

    async def close(self) -> None:
        """Wait until what was deleted is gone."""
        await asyncio.gather(*self._purging)

    # Inside

    def _resolve(self, owners: tuple[str, ...], parsed: AdapterRef) -> Version:
        for owner in owners:
            try:
                return self._store.resolve(owner, parsed.name, number=parsed.number, digest=parsed.digest)
            except AdapterNotFound:
                continue
        raise _unknown(str(parsed))

    async def _fit(self, version: Version) -> Version:
        """Judge again what was published for another base model or under other limits."""
        spec = version.spec
        if spec.judged_for != self._base.digest:
            known = self._judged.get(version.folder)
            if known is None:
                known = await asyncio.to_thread(self._judge, version.folder, published=True)
                self._judged[version.folder] = known
            spec = known
        if spec.num_virtual_tokens > self._limits.max_virtual_tokens:
            raise AdapterIncompatible(
                f"adapter {version.name!r} has {spec.num_virtual_tokens} virtual tokens; this server takes at most"
                f" {self._limits.max_virtual_tokens}",
                param="adapter",
            )
        return version if spec is version.spec else dataclasses.replace(version, spec=spec)

    async def _publish(self, tenant: Tenant, name: str, folder: Path, dry_run: bool) -> Verdict:
        spec = await asyncio.to_thread(self._judge, folder)
        await self._engine.wait_ready(ENGINE_WAIT)
        # One task stands for all: a thousand of them would keep the engine for hours. Every task's values are judged
        # again when it is loaded.
        await self._check_values(folder, spec)
        if dry_run:
            return Verdict(spec, await asyncio.to_thread(files_digest, folder))
        version, created = await _undisturbed(lambda: self._store.publish(tenant.name, name, folder, spec))
        return Verdict(version.spec, version.digest, version, created)

    async def _check_values(self, folder: Path, spec: AdapterSpec) -> None:
        """Let the engine judge the numbers, under a key that no request can share."""
        rows = range(self._base.vocab_size, self._base.vocab_size + spec.num_virtual_tokens)
        key = PrefixKey(self._base.digest, f"check:{folder.name}", 0, spec.num_virtual_tokens)
        source = AdapterSource(
            key=key,
            kind=spec.kind,
            path=str(folder / spec.tensors),
            sha256=spec.tensors_sha256,
            num_virtual_tokens=spec.num_virtual_tokens,
            prefix_ids=() if spec.kind.holds_kv else tuple(rows),
            needs_table=spec.template is not None and spec.template.has_rows,
            scale_by_sqrt_hidden=spec.scale_by_sqrt_hidden,
        )
        try:
            await self._engine.check(source)
            if spec.probe is not None:
                await self._probe(source, *spec.probe)
        finally:
            self._engine.forget(key.adapter)

    async def _probe(self, source: AdapterSource, ids: tuple[int, ...], expected: tuple[int, ...]) -> None:
        """Run the adapter's own test. Only float32 is held to it: rounding gives bfloat16 greedy tokens of its own."""
        hello = self._engine.hello
        if hello.dtype != "float32":
            return
        if source.prefix_len + len(ids) + len(expected) > hello.max_model_len:
            raise AdapterRejected(
                f"the adapter's probe does not fit the {hello.max_model_len} tokens of a sequence here"
            )
        stream = self._engine.submit(ids, SamplingParams(max_tokens=len(expected), ignore_eos=True), source)
        try:
            found = tuple([event.token async for event in stream])
        finally:
            stream.abort()
        if found != expected:
            raise AdapterRejected(
                f"the adapter's probe should be followed by {list(expected)} and is by {list(found)}: "
                "it was trained on other weights, or its tensors changed"
            )

    @asynccontextmanager
    async def _staged(self) -> AsyncIterator[Path]:
        staging = self._store.stage()
        folder = (await asyncio.to_thread(staging.__enter__)).folder
        try:
            with disk("the upload cannot be kept"):
                yield folder
        finally:
            await _undisturbed(lambda: staging.__exit__(None, None, None))

    def _judge(self, folder: Path, *, published: bool = False) -> AdapterSpec:
        return judge_folder(folder, self._base, self._limits, published=published)

    def _purge_unused(self, owner: str, name: str) -> None:
        doomed = self._doomed.get((owner, name))
        if doomed is None or any(folder in self._held for folder in doomed):
            return
        task = asyncio.get_running_loop().create_task(self._purge(owner, name, doomed))
        self._purging.add(task)
        task.add_done_callback(self._purging.discard)

    async def _purge(self, owner: str, name: str, doomed: dict[Path, str]) -> None:
        try:
            await asyncio.to_thread(self._store.purge, owner, name)
        except WaybillError:
            return  # the sweep at the next start removes them
        for folder, digest in doomed.items():
            self._judged.pop(folder, None)
            self._engine.forget(digest)
        if self._doomed.get((owner, name)) is doomed:
            del self._doomed[(owner, name)]

    @contextmanager
    def _upload_place(self) -> Iterator[None]:
        if self._uploads >= MAX_UPLOADS:
            raise Overloaded(f"{MAX_UPLOADS} uploads are being judged; try again", retry_after=2)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


async def _undisturbed(work: Callable[[], T]) -> T:
    """Run `work` in a thread and wait for its end even when cancelled: its folder must not go while it writes."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait((running,))


def _unknown(reference: str) -> AdapterNotFound:
    return AdapterNotFound(f"there is no adapter {reference!r}", param="adapter")
