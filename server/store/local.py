"""The adapter store on a local disk.

    <root>/<tenant>/<name>/versions/000001/   a plain PEFT folder and its manifest.json; no manifest, no version
    <root>/<tenant>/<name>/log/               what the name points to; see server.store.pointers
    <root>/.staging/<random>/                 what is being written; its writer holds the folder's lock

A version appears by one rename of a staged folder that is already complete and on the disk, the name moves by one new
file in the log. So a reader sees all of a version or nothing, whatever happens to the writer. Several processes may use
one root. Everything here blocks: call it in threads.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.errors import AdapterNotFound, Unavailable, WaybillError
from server.formats.names import check_name, check_tenant
from server.formats.spec import AdapterSpec
from server.store.cache import Recent
from server.store.digest import MANIFEST, digest_of, stored_files
from server.store.durable import Link, disk, hold, locked, make_folders, sync, try_hold, write_new
from server.store.layout import (
    STAGING,
    homes,
    log_folder,
    names_in,
    numbers_in,
    place_version,
    version_folder,
)
from server.store.manifest import decode_manifest, encode_manifest
from server.store.pointers import Pointers, append_pointers, read_pointers
from server.store.version import Version

TRUST_SECONDS = 2.0
"""How long a name is taken to point where it did when it was last read."""

CACHE_SIZE = 8192
"""Names, and versions, that are remembered."""

_READ = "the adapter store cannot be read"
_WRITE = "the adapter store cannot be written"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Staging:
    """A folder to write one adapter into before it is judged and published."""

    folder: Path


class AdapterStore:
    """Versions of adapters, by tenant and name. All methods raise Unavailable when the disk refuses.

    `clock` is in seconds and only measures how long a name has been trusted.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        link: Link = os.link,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        """Open the store, creating its folder where there is none."""
        with disk(f"the adapter store {root} cannot be opened"):
            root.mkdir(parents=True, exist_ok=True)
            self.root = root.resolve(strict=True)
            os.listdir(self.root)
        self._clock = clock
        self._link = link
        self._pointers: Recent[tuple[str, str], tuple[float, Pointers]] = Recent(cache_size)
        self._versions: Recent[tuple[str, str, int], Version] = Recent(cache_size)

    def resolve(self, tenant: str, name: str, *, number: int | None = None, digest: str | None = None) -> Version:
        """Return the version of that number or digest, else the latest.

        A publish or delete by another process is seen within `TRUST_SECONDS`. Raises AdapterNotFound, never from
        memory.
        """
        known = self._pointers.get((tenant, name))
        if known is not None and self._clock() - known[0] < TRUST_SECONDS:
            version = self._select(tenant, name, known[1], number, digest)
            if version is not None:
                return version
        pointers = self._read_pointers(tenant, name)
        version = self._select(tenant, name, pointers, number, digest)
        if version is None:
            raise AdapterNotFound(_not_found(name, pointers, number, digest), param="adapter")
        return version

    def versions(self, tenant: str, name: str) -> list[Version]:
        """Return every version of a name, the newest first; a damaged one is logged and left out.

        Raises AdapterNotFound when there is none.
        """
        pointers = self._read_pointers(tenant, name)
        found = list(self._readable(tenant, name, pointers.live()))
        if not found:
            raise AdapterNotFound(_not_found(name, pointers, None, None), param="adapter")
        return found

    def list(self, tenant: str) -> list[Version]:
        """Return the latest version of each of a tenant's names, by name; a damaged one is logged and left out."""
        check_tenant(tenant, allow_public=True)
        found: list[Version] = []
        with disk(_READ):
            for name in names_in(self.root / tenant):
                latest = self._read_pointers(tenant, name).latest
                if latest is not None:
                    found += self._readable(tenant, name, (latest,))
        return found

    @contextmanager
    def stage(self) -> Iterator[Staging]:
        """Give a new, empty folder on the store's file system, and remove what is left of it afterwards."""
        with disk(_WRITE):
            folder, handle = self._new_staging()
        try:
            yield Staging(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def publish(self, tenant: str, name: str, folder: Path, spec: AdapterSpec) -> tuple[Version, bool]:
        """Make the staged `folder`, judged as `spec`, the next version of a name, and let the name point to it.

        Returns the version and whether it is new: the same bytes under the same name are the existing version, and the
        name stays where it points. The staged folder is moved, or left for its stage to remove.
        """
        home = self._home(tenant, name)
        assert folder.parent == self.root / STAGING, folder
        with disk(_WRITE):
            files = stored_files(folder)
            digest = digest_of(files)
            for file in files:
                sync(folder / file.name)
            make_folders(home / "versions", self.root)
            make_folders(log_folder(home), self.root)
            with self.stage() as scratch, locked(home):
                pointers = self._read_pointers(tenant, name)
                existing = self._with_digest(tenant, name, digest, pointers)
                if existing is None:
                    manifest = encode_manifest(files, digest, int(time.time()), spec)
                    write_new(folder / MANIFEST, manifest, scratch.folder, self._link)
                    number = place_version(folder, home, pointers.last_version)
                else:
                    number = existing.number
                self._point(home, number, scratch.folder)
            version = existing or self._load(tenant, name, number)
        if version is None:
            raise WaybillError(f"version v{number} of adapter {name!r} vanished while it was published")
        return version, existing is None

    def delete(self, tenant: str, name: str) -> None:
        """Take a name and all its versions out of service. Their files stay until `purge`.

        Raises AdapterNotFound when there is no such name.
        """
        home = self._home(tenant, name)
        if self._read_pointers(tenant, name).latest is None:
            raise AdapterNotFound(_not_found(name, Pointers(), None, None), param="adapter")
        with disk(_WRITE), self.stage() as scratch, locked(home):
            while (pointers := self._read_pointers(tenant, name)).latest is not None:
                last = max([pointers.last_version, *numbers_in(home)])
                self._append(home, pointers.deleted(last), scratch.folder)

    def purge(self, tenant: str, name: str) -> None:
        """Remove the files of a name's deleted versions. Call it once nothing reads them any more."""
        home = self._home(tenant, name)
        with disk(_WRITE):
            if home.is_dir():
                with locked(home):
                    self._remove_dead(home)

    def sweep(self) -> None:
        """Put right what crashes have left; call it at start.

        Staged folders that nobody holds, folders without a manifest and deleted versions are removed, and a name points
        to a version whose publisher died before its last step. A store that cannot be written is left as it is.
        """
        try:
            self._sweep_staging()
            for home in homes(self.root):
                self._sweep_name(home)
        except (OSError, WaybillError) as error:
            _log.warning("the adapter store was not swept: %s", error)

    def _home(self, tenant: str, name: str) -> Path:
        """Return the folder of a name. Only checked names become paths, and no link leads out of the root."""
        home = self.root / check_tenant(tenant, allow_public=True) / check_name(name)
        if not home.resolve().is_relative_to(self.root):
            raise AdapterNotFound(f"adapter {name!r} lies outside the adapter store", param="adapter")
        return home

    def _read_pointers(self, tenant: str, name: str) -> Pointers:
        """Read what a name points to, and trust that from the moment before the reading."""
        home, now = self._home(tenant, name), self._clock()
        with disk(_READ):
            pointers = read_pointers(log_folder(home))
        if pointers.latest is None:
            self._pointers.forget((tenant, name))
        else:
            self._pointers.put((tenant, name), (now, pointers))
        return pointers

    def _select(
        self, tenant: str, name: str, pointers: Pointers, number: int | None, digest: str | None
    ) -> Version | None:
        if digest is not None:
            live = self._readable(tenant, name, pointers.live())
            return next((version for version in live if version.digest == digest), None)
        wanted = pointers.latest if number is None else number
        if wanted is None or wanted not in pointers.live():
            return None
        return self._load(tenant, name, wanted)

    def _readable(self, tenant: str, name: str, numbers: Iterable[int]) -> Iterator[Version]:
        """Yield the versions among `numbers` that exist; a damaged one is logged."""
        for number in numbers:
            try:
                version = self._load(tenant, name, number)
            except Unavailable:
                raise
            except WaybillError as error:
                _log.error("%s/%s: %s", tenant, name, error.message)
                continue
            if version is not None:
                yield version

    def _load(self, tenant: str, name: str, number: int) -> Version | None:
        """Return a version, None where no manifest says that there is one."""
        key = tenant, name, number
        version = self._versions.get(key)
        if version is None:
            folder = version_folder(self._home(tenant, name), number)
            with disk(_READ):
                try:
                    data = (folder / MANIFEST).read_bytes()
                except FileNotFoundError:
                    return None
            try:
                version = decode_manifest(data, tenant, name, number, folder)
            except ValueError as error:
                raise WaybillError(f"version v{number} of adapter {name!r} is damaged: {error}") from error
            self._versions.put(key, version)
        return version

    def _with_digest(self, tenant: str, name: str, digest: str, pointers: Pointers) -> Version | None:
        """Return a live version of these bytes, also one whose publisher died before the name could point to it."""
        numbers = [number for number in numbers_in(self._home(tenant, name)) if number > pointers.deleted_through]
        found = self._readable(tenant, name, numbers)
        return next((version for version in found if version.digest == digest), None)

    def _point(self, home: Path, number: int, scratch: Path) -> None:
        """Let the name point to a version that lies in its place, unless it has moved on already."""
        while (pointers := self._read_pointers(home.parent.name, home.name)).last_version < number:
            self._append(home, pointers.published(number), scratch)

    def _append(self, home: Path, pointers: Pointers, scratch: Path) -> None:
        """Add a state to the log. A writer that comes second changes nothing; its caller reads again and decides."""
        try:
            append_pointers(log_folder(home), pointers, scratch, self._link)
        except FileExistsError:
            return

    def _new_staging(self) -> tuple[Path, int]:
        """Create a staging folder and hold its lock; a sweep that comes between the two takes the folder."""
        make_folders(self.root / STAGING, self.root)
        while True:
            folder = self.root / STAGING / secrets.token_hex(8)
            folder.mkdir()
            try:
                handle = hold(folder)
            except FileNotFoundError:
                continue
            if folder.is_dir():
                return folder, handle
            os.close(handle)

    def _remove_dead(self, home: Path) -> None:
        """Remove the folders of deleted versions and those without a manifest. The caller holds the name's lock."""
        gone = self._read_pointers(home.parent.name, home.name).deleted_through
        for number in numbers_in(home):
            if number <= gone or not (version_folder(home, number) / MANIFEST).is_file():
                self._versions.forget((home.parent.name, home.name, number))
                shutil.rmtree(version_folder(home, number))

    def _sweep_staging(self) -> None:
        staging = self.root / STAGING
        for path in staging.iterdir() if staging.is_dir() else ():
            handle = try_hold(path)
            if handle is not None:
                shutil.rmtree(path)
                os.close(handle)

    def _sweep_name(self, home: Path) -> None:
        with locked(home):
            self._remove_dead(home)
            newest = max(numbers_in(home), default=0)
            if newest > self._read_pointers(home.parent.name, home.name).last_version:
                with self.stage() as scratch:
                    make_folders(log_folder(home), self.root)
                    self._point(home, newest, scratch.folder)


def _not_found(name: str, pointers: Pointers, number: int | None, digest: str | None) -> str:
    if pointers.latest is None:
        return f"there is no adapter {name!r}"
    wanted = f"version v{number}" if digest is None else f"version of digest {digest}"
    return f"adapter {name!r} has no {wanted}; the latest is v{pointers.latest}"
