"""A bounded cache, on the disk, of the files of versions that lie in an object store."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from server.errors import Unavailable, WaybillError
from server.store.digest import MANIFEST, digest_of, stored_files
from server.store.durable import disk, try_hold
from server.store.manifest import file_names
from server.store.staging import StagingArea

_log = logging.getLogger(__name__)


class FileCache:
    """Folders of plain files, one for each digest, `max_bytes` of them; those used longest ago go first.

    What is held is never removed, so that more than `max_bytes` may be there while it is. A cache belongs to one
    process; what an earlier one left is used again, once its digest is found to be right.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Open the cache, creating its folder where there is none. Raises Unavailable, also where another has it."""
        with disk(f"the cache {root} of the adapter store cannot be opened"):
            root.mkdir(parents=True, exist_ok=True)
            self.root = root.resolve(strict=True)
            self._claim = try_hold(self.root)
            if self._claim is None:
                raise Unavailable(
                    f"the cache {root} of the adapter store is another server's: give each its own", retry_after=5
                )
            self.staging = StagingArea(self.root)
            self.staging.sweep()
            found = sorted(self.root.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._filling: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
        self._sizes = {path.name: _size(path) for path in found}  # the one used longest ago first
        self._total = sum(self._sizes.values())
        self._proved: set[str] = set()
        self._held: Counter[str] = Counter()

    def folder(self, digest: str) -> Path:
        """Return where the files of a digest are once `fill` has returned."""
        return self.root / digest.removeprefix("sha256:")

    def fill(self, digest: str, manifest: Callable[[], bytes], bring: Callable[[str, Path], None]) -> None:
        """Have a digest's folder there. Its files are brought unless they are, and proved by the digest.

        Raises what the two callables raise, WaybillError where what came is not what the digest says, and Unavailable.
        """
        folder = self.folder(digest)
        with self._turn(digest).lock:
            if not self._is_there(folder, digest):
                with disk("the cache of the adapter store cannot be written"), self.staging.stage() as staging:
                    for name in file_names(manifest()):
                        bring(name, staging.folder / name)
                    _prove(staging.folder, digest)
                    shutil.rmtree(folder, ignore_errors=True)
                    staging.folder.rename(folder)
            self._use(folder)

    def hold(self, digest: str) -> None:
        """Keep a digest's files until `release`."""
        with self._lock:
            self._held[self.folder(digest).name] += 1

    def release(self, digest: str) -> None:
        """Give back one `hold`."""
        name = self.folder(digest).name
        with self._lock:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return self.folder(digest).name in self._proved

    def _turn(self, digest: str) -> _Turn:
        with self._lock:
            return self._filling.setdefault(digest, _Turn())

    def _is_there(self, folder: Path, digest: str) -> bool:
        if folder.name in self._proved and folder.is_dir():
            return True
        if not folder.is_dir():
            return False
        try:
            _prove(folder, digest)
        except (WaybillError, OSError) as error:
            _log.warning("a cached adapter is fetched again: %s", error)
            return False
        return True

    def _use(self, folder: Path) -> None:
        """Note that a folder was used now, and remove what is too much."""
        with disk("the cache of the adapter store cannot be read"):
            size = self._sizes.get(folder.name) or _size(folder)
            os.utime(folder)  # so that the next process knows their order
        with self._lock:
            self._total += size - self._sizes.pop(folder.name, 0)
            self._sizes[folder.name] = size
            self._proved.add(folder.name)
            if self._total > self._max_bytes:
                for name in [name for name in self._sizes if name != folder.name and name not in self._held]:
                    self._total -= self._sizes.pop(name)
                    self._proved.discard(name)
                    shutil.rmtree(self.root / name, ignore_errors=True)
                    if self._total <= self._max_bytes:
                        break


class _Turn:
    """A lock that lives as long as somebody waits for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _prove(folder: Path, digest: str) -> None:
    found = digest_of(stored_files(folder))
    if found != digest:
        raise WaybillError(f"the files of {digest} are those of {found}: the adapter store was changed or damaged")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST)
