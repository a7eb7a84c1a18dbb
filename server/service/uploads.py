"""Uploads: received, judged, published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from server.core import AdapterSource, BaseModel, PrefixKey, SamplingParams
from server.engine.client import RESTART_WAIT, EngineClient
from server.errors import AdapterRejected, Overloaded, WaybillError
from server.formats.archive import unpack_zip
from server.formats.judge import AdapterLimits, judge_folder, max_folder_bytes
from server.formats.names import check_alias, check_name
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an upload. `version` is None for a dry run, `created` False where the bytes were there already."""

    spec: AdapterSpec
    digest: str
    version: Version | None = None
    created: bool = False


class UploadService:
    """Takes adapters in. Files are touched in threads."""

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

    @asynccontextmanager
    async def stage(self) -> AsyncIterator[Path]:
        """Give a new folder to receive an upload in; nothing is left of it afterwards.

        Raises Overloaded, and turns what the disk refuses meanwhile into Unavailable or StoreFull.
        """
        with self._upload_place():
            async with self._staged() as folder:
                yield folder

    async def publish(
        self,
        tenant: Tenant,
        name: str,
        folder: Path,
        *,
        archive: str | None = None,
        alias: str | None = None,
        dry_run: bool = False,
    ) -> Verdict:
        """Judge the staged adapter and make it the next version of the tenant's `name`, and what `alias` means.

        `archive` names a zip in `folder` that holds the adapter, instead of the folder itself. Raises AdapterRejected,
        AdapterIncompatible, InvalidRequest.
        """
        try:
            check_name(name)
            if alias is not None:
                check_alias(alias)
            if archive is None:
                verdict = await self._publish(tenant, name, folder, alias, dry_run)
            else:
                async with self._staged() as unpacked:
                    size = max_folder_bytes(self._base, self._limits)
                    await _undisturbed(lambda: unpack_zip(folder / archive, unpacked, size))
                    verdict = await self._publish(tenant, name, unpacked, alias, dry_run)
        except WaybillError:
            self._metrics.observe_publish("refused")
            raise
        self._metrics.observe_publish(
            "checked" if dry_run else "created" if verdict.created else "existing",
        )
        return verdict

    async def _publish(self, tenant: Tenant, name: str, folder: Path, alias: str | None, dry_run: bool) -> Verdict:
        spec = await asyncio.to_thread(judge_folder, folder, self._base, self._limits)
        await self._engine.wait_ready(RESTART_WAIT)
        # One task stands for all: a thousand of them would keep the engine for hours. Every task's values are judged
        # again when it is loaded.
        await self._check_values(folder, spec)
        if dry_run:
            return Verdict(spec, await asyncio.to_thread(files_digest, folder))
        version, created = await _undisturbed(lambda: self._store.publish(tenant.name, name, folder, spec, alias=alias))
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
