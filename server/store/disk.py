"""Versions on a local disk, or on one that several machines mount.

A version appears by one rename of a folder that is already complete and on the disk, a log entry by one hard link to a
file that is. So a reader sees all of it or nothing, whatever happens to the writer.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import AdapterNotFound
from server.formats.names import is_name
from server.store.backend import LOG, VERSIONS, Home, entry_label, listed, number_of, revision_of, version_label
from server.store.digest import MANIFEST
from server.store.durable import Link, disk, locked, make_folders, sync, write_new
from server.store.staging import StagingArea


class Disk:
    """A `Backend` in the folder `root`, which is made where there is none. Raises Unavailable.

    `link` is `os.link`, or stands in for it: where hard links are refused, entries are created and then written.
    """

    remote = False

    def __init__(self, root: Path, link: Link = os.link) -> None:
        with disk(f"the adapter store {root} cannot be opened"):
            root.mkdir(parents=True, exist_ok=True)
            self.root = root.resolve(strict=True)
            os.listdir(self.root)
        self.where = str(root)
        self.staging = StagingArea(self.root)
        self._link = link

    def tenants(self) -> list[str]:
        return _folders_in(self.root)

    def names(self, tenant: str, after: str = "") -> Iterator[tuple[str, int | None]]:
        least = listed(after) if after else ""
        for name in _folders_in(self.root / tenant):
            if listed(name) > least:
                yield name, None

    def revisions(self, home: Home) -> list[int]:
        try:
            entries = os.listdir(self._home(home) / LOG)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((found for entry in entries if (found := revision_of(entry)) is not None), reverse=True)

    def entry(self, home: Home, revision: int) -> bytes:
        return (self._home(home) / LOG / entry_label(revision)).read_bytes()

    def append(self, home: Home, revision: int, entry: bytes) -> None:
        log = self._home(home) / LOG
        make_folders(log, self.root)
        with self.staging.stage() as scratch:
            write_new(log / entry_label(revision), entry, scratch.folder, self._link)

    def trim(self, home: Home, below: int) -> None:
        for revision in self.revisions(home):
            if revision < below:
                (self._home(home) / LOG / entry_label(revision)).unlink(missing_ok=True)

    def numbers(self, home: Home) -> list[int]:
        try:
            entries = os.listdir(self._home(home) / VERSIONS)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((found for entry in entries if (found := number_of(entry)) is not None), reverse=True)

    def manifest(self, home: Home, number: int) -> bytes | None:
        try:
            return (self._version(home, number) / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None

    def place(self, home: Home, number: int, staged: Path) -> bool:
        target = self._version(home, number)
        make_folders(target.parent, self.root)
        for path in staged.iterdir():
            sync(path)
        sync(staged)
        try:
            staged.rename(target)  # a folder that stands there, if it is not empty, is never replaced
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        sync(target.parent)
        return True

    def folder(self, home: Home, number: int, digest: str) -> Path:
        return self._version(home, number)

    def fetch(self, home: Home, number: int, digest: str) -> None:
        pass

    def hold(self, digest: str) -> None:
        pass

    def release(self, digest: str) -> None:
        pass

    def is_fetched(self, digest: str) -> bool:
        return True

    def remove(self, home: Home, number: int) -> None:
        folder = self._version(home, number)
        (folder / MANIFEST).unlink(missing_ok=True)
        if folder.is_dir():
            shutil.rmtree(folder)

    def has_incomplete(self, home: Home, numbers: list[int]) -> bool:
        return not all((self._version(home, number) / MANIFEST).is_file() for number in numbers)

    def remove_incomplete(self, home: Home) -> None:
        for number in self.numbers(home):
            if not (self._version(home, number) / MANIFEST).is_file():
                shutil.rmtree(self._version(home, number))

    @contextmanager
    def exclusive(self, home: Home) -> Iterator[None]:
        folder = self._home(home)
        make_folders(folder, self.root)
        with locked(folder):
            yield

    def _home(self, home: Home) -> Path:
        """Return the folder of a name; no link leads out of the root."""
        folder = self.root / home.tenant / home.name
        if not folder.resolve().is_relative_to(self.root):
            raise AdapterNotFound(f"adapter {home.name!r} lies outside the adapter store", param="adapter")
        return folder

    def _version(self, home: Home, number: int) -> Path:
        return self._home(home) / VERSIONS / version_label(number)


def _folders_in(folder: Path) -> list[str]:
    """Return the folders that can be a tenant's or an adapter's, in `listed` order; none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name for entry in entries if is_name(entry.name) and entry.is_dir()), key=listed)
    except (FileNotFoundError, NotADirectoryError):
        return []
