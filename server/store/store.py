"""The adapter store: versions of adapters, and what their names point to.

A version is immutable and known by its digest; a name, and each of its aliases, points to one. A version is there once
it is complete and durable, and a name moves by one new entry in its log. So a reader sees all of a version or nothing,
whatever happens to the writer. Several servers may use one store. Everything here blocks: call it in threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from server.errors import AdapterNotFound, InvalidRequest, RevisionConflict, Unavailable, WaybillError
from server.formats.names import LATEST, check_alias, check_tenant
from server.formats.spec import AdapterSpec
from server.store.backend import Backend, Home
from server.store.cache import Recent
from server.store.digest import MANIFEST, digest_of, stored_files
from server.store.durable import disk
from server.store.manifest import decode_manifest, encode_manifest
from server.store.pointers import MAX_ALIASES, Pointers, append_pointers, earlier, read_pointers
from server.store.staging import WRITE, Staging
from server.store.version import Version

TRUST_SECONDS = 2.0
"""How long a name is taken to point where it did when it was last read."""

CACHE_SIZE = 8192
"""Names, and versions, that are remembered."""

READERS = 32
"""Reads that are under way at once where each takes long."""

Found = TypeVar("Found")

_READ = "the adapter store cannot be read"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name with what it points to, and the version that the bare name means."""

    tenant: str
    name: str
    pointers: Pointers
    latest: Version


class AdapterStore:
    """Versions of adapters, by tenant and name. All methods raise Unavailable when the place refuses.

    `clock` is in seconds and only measures how long a name has been trusted.
    """

    def __init__(
        self, backend: Backend, *, clock: Callable[[], float] = time.monotonic, cache_size: int = CACHE_SIZE
    ) -> None:
        self.backend = backend
        self._clock = clock
        self._pointers: Recent[Home, tuple[float, Pointers]] = Recent(cache_size)
        self._versions: Recent[tuple[Home, int], Version] = Recent(cache_size)
        self._readers = ThreadPoolExecutor(READERS, "store")  # its threads start when they are needed

    # Reading

    def resolve(
        self, tenant: str, name: str, *, number: int | None = None, digest: str | None = None, alias: str = LATEST
    ) -> Version:
        """Return the version of that number or digest, else the one that the alias means.

        A change by another process is seen within `TRUST_SECONDS`. Raises AdapterNotFound, never from memory.
        """
        home = Home(tenant, name)
        known = self._pointers.get(home)
        if known is not None and self._clock() - known[0] < TRUST_SECONDS:
            version = self._select(home, known[1], number, digest, alias)
            if version is not None:
                return version
        pointers = self._read_pointers(home)
        version = self._select(home, pointers, number, digest, alias)
        if version is None:
            raise _not_found(name, pointers, number, digest, alias)
        return version

    def describe(self, tenant: str, name: str) -> Adapter:
        """Return a name with all that it points to now. Raises AdapterNotFound."""
        found = self._describe(Home(tenant, name))
        if found is None:
            raise _not_found(name, Pointers())
        return found

    def versions(self, tenant: str, name: str, *, before: int = 0, limit: int | None = None) -> list[Version]:
        """Return a name's versions, the newest first; a damaged one is logged and left out.

        `before` leaves out those from that number on; where `limit` is set, no more than so many are returned, and
        hardly more are read. Raises AdapterNotFound where there is no such name.
        """
        home = Home(tenant, name)
        pointers = self._read_pointers(home)
        if pointers.latest is None:
            raise _not_found(name, pointers)
        numbers = [number for number in pointers.live() if not before or number < before]
        at_once = limit or max(len(numbers), 1)
        found: list[Version] = []
        for start in range(0, len(numbers), at_once):
            found += self._readable(home, numbers[start : start + at_once], pointers)
            if len(found) >= at_once:
                break
        return found[:limit]

    def page(self, tenant: str, after: str = "", limit: int = 100) -> tuple[list[Adapter], str | None]:
        """Return up to `limit` of a tenant's names after `after`, and the last one that was looked at.

        That is None where there are no more. Names come in the place's own order. A damaged one is logged and left out,
        and deleted ones are passed over, so that a page may be short, or empty, and others follow.
        """
        check_tenant(tenant, allow_public=True)
        names: list[tuple[str, int | None]] = []
        with disk(_READ):
            for name in self.backend.names(tenant, after):
                if len(names) == limit:
                    break
                names.append(name)
            else:
                limit = -1  # no more follow

            def listed(name: tuple[str, int | None]) -> Adapter | None:
                return self._listed(Home(tenant, name[0]), name[1])

            found = list(self._readers.map(listed, names) if self.backend.remote else map(listed, names))
        return [adapter for adapter in found if adapter is not None], names[-1][0] if limit > 0 else None

    def list(self, tenant: str) -> list[Version]:
        """Return the latest version of each of a tenant's names, by name; a damaged one is logged and left out."""
        found: list[Version] = []
        after: str | None = ""
        while after is not None:
            adapters, after = self.page(tenant, after, 1000)
            found += [adapter.latest for adapter in adapters]
        return found

    def fetch(self, version: Version) -> None:
        """Have a version's files in its folder. Raises AdapterNotFound where they are gone."""
        with disk(_READ):
            self.backend.fetch(Home(version.tenant, version.name), version.number, version.digest)

    # Writing

    def stage(self) -> AbstractContextManager[Staging]:
        """Give a new, empty folder to write an adapter into, and remove what is left of it afterwards."""
        return self.backend.staging.stage()

    def publish(
        self, tenant: str, name: str, folder: Path, spec: AdapterSpec, *, alias: str | None = None
    ) -> tuple[Version, bool]:
        """Make the staged `folder`, judged as `spec`, the next version of a name, and let the name point to it.

        Returns the version and whether it is new: the same bytes under the same name are the existing version, and the
        name stays where it points. `alias` then means the version, new or not. The staged folder is moved, or left for
        its stage to remove.
        """
        home = Home(tenant, name)
        if alias is not None:
            check_alias(alias)
        assert folder.parent == self.backend.staging.folder, folder
        with disk(WRITE):
            files = stored_files(folder)
            digest = digest_of(files)
            with self.backend.exclusive(home):
                pointers = self._read_pointers(home)
                existing = self._with_digest(home, digest, pointers)
                if existing is None:
                    self.backend.remove_incomplete(home)
                    manifest = encode_manifest(files, digest, int(time.time()), spec)
                    (folder / MANIFEST).write_bytes(manifest)
                    number = max([pointers.last_version, *self.backend.numbers(home)]) + 1
                    while not self.backend.place(home, number, folder):
                        number += 1
                    self._point_or_remove(home, number, manifest)
                else:
                    number = existing.number
                    self._point(home, number)
                if alias is not None:
                    self._change(home, lambda state: _pointing(state, name, alias, number))
            version = existing or self._load(home, number)
        if version is None:
            raise WaybillError(f"version v{number} of adapter {name!r} vanished while it was published")
        return version, existing is None

    def move_alias(self, tenant: str, name: str, alias: str, number: int, revision: int | None = None) -> Pointers:
        """Let an alias mean a version, and return the state with it.

        Raises AdapterNotFound, InvalidRequest, and RevisionConflict where the name is not at `revision`, or where the
        alias was moved by another in this moment.
        """
        check_alias(alias)
        self.resolve(tenant, name, number=number)
        return self._move(Home(tenant, name), alias, revision, lambda state: _pointing(state, name, alias, number))

    def rollback(self, tenant: str, name: str, alias: str, revision: int | None = None) -> Pointers:
        """Let an alias mean what it meant before it came to mean what it does. Raises as `move_alias`."""
        home = Home(tenant, name)
        check_alias(alias)

        def back(state: Pointers) -> Pointers:
            if state.alias(alias) is None:
                raise AdapterNotFound(f"adapter {name!r} has no alias {alias!r}", param="alias", known=True)
            number = earlier(self.backend, home, alias, state)
            if number is None:
                raise InvalidRequest(f"alias {alias!r} of adapter {name!r} never meant another version that is left")
            return state.pointing(alias, number)

        return self._move(home, alias, revision, back)

    def remove_alias(self, tenant: str, name: str, alias: str, revision: int | None = None) -> Pointers:
        """Remove an alias. Raises as `move_alias`."""
        if check_alias(alias) == LATEST:
            raise InvalidRequest(f"the alias {LATEST!r} always exists", param="alias")

        def without(state: Pointers) -> Pointers:
            if state.alias(alias) is None:
                raise AdapterNotFound(f"adapter {name!r} has no alias {alias!r}", param="alias", known=True)
            return state.without_alias(alias)

        return self._move(Home(tenant, name), alias, revision, without)

    def annotate(
        self,
        tenant: str,
        name: str,
        *,
        description: str | None = None,
        tags: tuple[str, ...] | None = None,
        revision: int | None = None,
    ) -> Pointers:
        """Change what is written about a name; None leaves a part as it is. Raises as `move_alias`."""

        def annotated(state: Pointers) -> Pointers:
            described = state if description is None else replace(state, description=description)
            return described if tags is None else replace(described, tags=tags)

        return self._change(Home(tenant, name), annotated, revision)

    def delete(self, tenant: str, name: str) -> None:
        """Take a name and all its versions out of service. Their files stay until `purge`.

        Raises AdapterNotFound when there is no such name.
        """
        home = Home(tenant, name)
        with disk(WRITE):
            self._change(home, lambda state: state.without_all(max([state.last_version, *self.backend.numbers(home)])))

    def delete_version(self, tenant: str, name: str, number: int) -> None:
        """Take one version out of service. Its files stay until `purge`.

        Raises AdapterNotFound, and InvalidRequest where an alias means it.
        """
        self.resolve(tenant, name, number=number)

        def without(state: Pointers) -> Pointers:
            meaning = [alias for alias, meant in state.aliases if meant == number]
            if meaning:
                raise InvalidRequest(
                    f"v{number} of adapter {name!r} is what {', '.join(map(repr, meaning))} means: move that first",
                    param="version",
                )
            return state.without_version(number)

        self._change(Home(tenant, name), without)

    def purge(self, tenant: str, name: str, numbers: Collection[int] | None = None) -> None:
        """Remove the files of a name's deleted versions, or of those among `numbers`.

        Call it once nothing reads them any more.
        """
        home = Home(tenant, name)
        with disk(WRITE):
            if self.backend.numbers(home):
                with self.backend.exclusive(home):
                    self._remove_dead(home, numbers)

    def sweep_staging(self) -> None:
        """Remove staged folders that nobody holds; call it at start."""
        try:
            self.backend.staging.sweep()
        except OSError as error:
            _log.warning("the adapter store was not swept: %s", error)

    def sweep(self, grace: float = 0.0) -> None:
        """Put right what crashes have left; nothing waits for it, and it may run beside everything else.

        Staged folders that nobody holds, what is left of incomplete versions, and deleted versions are removed, and a
        name points to a version whose publisher died before its last step. Names that changed within `grace` seconds
        keep their deleted versions, which requests may still use. A store that cannot be written is left as it is.
        """
        self.sweep_staging()
        try:
            for tenant in self.backend.tenants():
                for name, _ in self.backend.names(tenant):
                    self._sweep_name(Home(tenant, name), grace)
        except (OSError, WaybillError) as error:
            _log.warning("the adapter store was not swept: %s", error)

    # Inside

    def _read_pointers(self, home: Home, newest: int | None = None) -> Pointers:
        """Read what a name points to, and trust that from the moment before the reading."""
        now = self._clock()
        with disk(_READ):
            pointers = read_pointers(self.backend, home, newest)
        self._trust(home, pointers, now)
        return pointers

    def _trust(self, home: Home, pointers: Pointers, now: float) -> None:
        if pointers.latest is None:
            self._pointers.forget(home)
        else:
            self._pointers.put(home, (now, replace(pointers, manifest=b"")))  # versions are remembered by themselves

    def _describe(self, home: Home, newest: int | None = None) -> Adapter | None:
        pointers = self._read_pointers(home, newest)
        latest = None if pointers.latest is None else self._load(home, pointers.latest, pointers)
        return None if latest is None else Adapter(home.tenant, home.name, pointers, latest)

    def _listed(self, home: Home, newest: int | None) -> Adapter | None:
        return _unless_damaged(home, lambda: self._describe(home, newest))

    def _select(
        self, home: Home, pointers: Pointers, number: int | None, digest: str | None, alias: str
    ) -> Version | None:
        if digest is not None:
            return next((v for v in self._readable(home, pointers.live(), pointers) if v.digest == digest), None)
        wanted = pointers.alias(alias) if number is None else number
        return self._load(home, wanted, pointers) if wanted is not None and pointers.is_live(wanted) else None

    def _readable(self, home: Home, numbers: Iterable[int], pointers: Pointers | None = None) -> Iterator[Version]:
        """Yield the versions among `numbers` that exist; a damaged one is logged."""

        def load(number: int) -> Version | None:
            return _unless_damaged(home, lambda: self._load(home, number, pointers))

        found = self._readers.map(load, numbers) if self.backend.remote else map(load, numbers)
        yield from (version for version in found if version is not None)

    def _load(self, home: Home, number: int, pointers: Pointers | None = None) -> Version | None:
        """Return a version, None where no manifest, its own or the copy in the log, says that there is one."""
        version = self._versions.get((home, number))
        if version is None:
            copied = pointers.manifest if pointers is not None and number == pointers.last_version else b""
            with disk(_READ):
                data = copied or self.backend.manifest(home, number)
            if data is None:
                return None
            try:
                version = decode_manifest(data, home, number, self.backend.folder)
            except ValueError as error:
                raise WaybillError(f"version v{number} of adapter {home.name!r} is damaged: {error}") from error
            self._versions.put((home, number), version)
        return version

    def _with_digest(self, home: Home, digest: str, pointers: Pointers) -> Version | None:
        """Return a live version of these bytes, also one whose publisher died before the name could point to it."""
        numbers = [
            number
            for number in self.backend.numbers(home)
            if number > pointers.last_version or pointers.is_live(number)
        ]
        return next((version for version in self._readable(home, numbers) if version.digest == digest), None)

    def _point(self, home: Home, number: int, manifest: bytes = b"") -> None:
        """Let the name point to a version that lies in its place, unless it has moved on already."""
        while (pointers := self._read_pointers(home)).last_version < number:
            self._append(home, pointers.published(number, manifest))

    def _point_or_remove(self, home: Home, number: int, manifest: bytes) -> None:
        """As `_point`; where a disk refuses that, nothing is left of the version.

        A bucket may still carry out what it did not confirm: there the next sweep decides.
        """
        try:
            self._point(home, number, manifest)
        except (OSError, WaybillError):
            with suppress(OSError, WaybillError):
                if not self.backend.remote and self._read_pointers(home).last_version < number:
                    self.backend.remove(home, number)
            raise

    def _append(self, home: Home, pointers: Pointers) -> Pointers | None:
        """Add a state to the log. A writer that comes second changes nothing; its caller reads again and decides."""
        now = self._clock()
        try:
            state = append_pointers(self.backend, home, pointers)
        except FileExistsError:
            return None
        self._trust(home, state, now)
        return state

    def _move(self, home: Home, alias: str, revision: int | None, change: Callable[[Pointers], Pointers]) -> Pointers:
        """Change an alias, unless it is moved by another meanwhile."""
        before: list[int | None] = []

        def guarded(state: Pointers) -> Pointers:
            if before and state.alias(alias) != before[0]:
                raise RevisionConflict(
                    f"alias {alias!r} of adapter {home.name!r} was moved by another at the same time", param="alias"
                )
            before.append(state.alias(alias))
            return change(state)

        return self._change(home, guarded, revision)

    def _change(self, home: Home, change: Callable[[Pointers], Pointers], revision: int | None = None) -> Pointers:
        """Add the state that `change` derives from the newest, and return it; one that is the same is not added.

        Raises AdapterNotFound where there is no such name, and RevisionConflict where it is not at `revision`.
        """
        with disk(WRITE):
            while True:
                state = self._read_pointers(home)
                if state.latest is None:
                    raise _not_found(home.name, state)
                if revision is not None and state.revision != revision:
                    raise RevisionConflict(
                        f"adapter {home.name!r} is at revision {state.revision}, not {revision}: read it again",
                        param="If-Match",
                    )
                wanted = change(state)
                if wanted == state:
                    return state
                added = self._append(home, wanted)
                if added is not None:
                    return added

    def _remove_dead(self, home: Home, numbers: Collection[int] | None = None) -> None:
        """Remove deleted versions and what is left of incomplete ones. The caller keeps other writers waiting."""
        pointers = self._read_pointers(home)
        for number in self.backend.numbers(home):
            asked = numbers is None or number in numbers
            if asked and number <= pointers.last_version and not pointers.is_live(number):
                self._versions.forget((home, number))
                self.backend.remove(home, number)
        self.backend.remove_incomplete(home)

    def _sweep_name(self, home: Home, grace: float) -> None:
        numbers, pointers = self.backend.numbers(home), self._read_pointers(home)
        if all(pointers.is_live(number) for number in numbers) and not self.backend.has_incomplete(home, numbers):
            return
        with self.backend.exclusive(home):
            if time.time() - pointers.at >= grace:
                self._remove_dead(home)
            newest = next(self._readable(home, self.backend.numbers(home)), None)
            if newest is not None:
                self._point(home, newest.number)


def _pointing(state: Pointers, name: str, alias: str, number: int) -> Pointers:
    if not state.is_live(number):
        raise AdapterNotFound(f"adapter {name!r} has no version v{number}", param="version", known=True)
    if state.alias(alias) is None and len(state.aliases) >= MAX_ALIASES:
        raise InvalidRequest(f"adapter {name!r} has {MAX_ALIASES} aliases already", param="alias")
    return state.pointing(alias, number)


def _unless_damaged(home: Home, load: Callable[[], Found]) -> Found | None:
    """Return what `load` does; None where that is damaged, which is logged."""
    try:
        return load()
    except Unavailable:
        raise
    except WaybillError as error:
        _log.error("%s: %s", home, error.message)
        return None


def _not_found(
    name: str, pointers: Pointers, number: int | None = None, digest: str | None = None, alias: str = LATEST
) -> AdapterNotFound:
    if pointers.latest is None:
        return AdapterNotFound(f"there is no adapter {name!r}", param="adapter")
    wanted = f"version v{number}" if number else f"version of digest {digest}" if digest else f"alias {alias!r}"
    return AdapterNotFound(
        f"adapter {name!r} has no {wanted}; the latest is v{pointers.latest}", param="adapter", known=True
    )
