"""What a place must offer for versions to be kept there: a disk, or a bucket.

    <tenant>/<name>/versions/000001/   a plain PEFT folder and its manifest.json; no manifest, no version
    <tenant>/<name>/log/               what the name points to, one file per change; see server.store.pointers

Both kinds of places have this one layout, so that a folder can be copied into a bucket and back. Nothing is ever
overwritten: a version and a log entry are created or refused, which every disk and every object store can do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server.formats.names import check_name, check_tenant
from server.store.staging import StagingArea

VERSIONS = "versions"
LOG = "log"
_NUMBER = re.compile(r"[0-9]{6,9}")
_TOP = 10**12 - 1
_ENTRY = re.compile(r"[0-9]{12}\.json")


@dataclass(frozen=True, slots=True)
class Home:
    """The place of one name. Only checked names become one. Raises InvalidRequest."""

    tenant: str
    name: str

    def __post_init__(self) -> None:
        check_tenant(self.tenant, allow_public=True)
        check_name(self.name)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


class Backend(Protocol):
    """A place for versions. Calls block, may come from several threads, and raise OSError or Unavailable.

    FileNotFoundError and FileExistsError mean just that. Other processes, on other machines too, may use the place.
    """

    where: str
    """What people call the place."""

    remote: bool
    """Whether a read takes so long that several should be under way at once."""

    staging: StagingArea
    """Where uploads are written before they are judged."""

    def tenants(self) -> list[str]:
        """Return who has names here, sorted."""
        ...

    def names(self, tenant: str, after: str = "") -> Iterator[tuple[str, int | None]]:
        """Yield a tenant's names after `after`, each with its newest revision where that is known.

        The order is the place's own, and stays: a disk, and most object stores, sort by `listed`.
        """
        ...

    def revisions(self, home: Home) -> list[int]:
        """Return the revisions in a name's log, the newest first; a thousand or more of them, or all."""
        ...

    def entry(self, home: Home, revision: int) -> bytes:
        """Return one entry of a name's log."""
        ...

    def append(self, home: Home, revision: int, entry: bytes) -> None:
        """Create an entry, whole and durably. Raises FileExistsError when another writer was first."""
        ...

    def trim(self, home: Home, below: int) -> None:
        """Remove the entries before the revision `below`."""
        ...

    def numbers(self, home: Home) -> list[int]:
        """Return the numbers that are taken, of complete versions or not, the highest first."""
        ...

    def manifest(self, home: Home, number: int) -> bytes | None:
        """Return a version's manifest, None where there is none."""
        ...

    def place(self, home: Home, number: int, staged: Path) -> bool:
        """Make a staged folder with its manifest a version, durably and at once; False where the number is taken."""
        ...

    def folder(self, home: Home, number: int, digest: str) -> Path:
        """Return where a version's files are for readers once they are fetched."""
        ...

    def fetch(self, home: Home, number: int, digest: str) -> None:
        """Bring a version's files into its folder. Raises AdapterNotFound where they are gone."""
        ...

    def hold(self, digest: str) -> None:
        """Keep what is fetched of a digest until `release`."""
        ...

    def release(self, digest: str) -> None:
        """Give back one `hold`."""
        ...

    def is_fetched(self, digest: str) -> bool:
        """Whether a digest's files can be read without being fetched."""
        ...

    def remove(self, home: Home, number: int) -> None:
        """Remove a version; its manifest goes first."""
        ...

    def has_incomplete(self, home: Home, numbers: list[int]) -> bool:
        """Whether one of a name's taken numbers has no manifest."""
        ...

    def remove_incomplete(self, home: Home) -> None:
        """Remove what writers that died have left of versions under a name."""
        ...

    def exclusive(self, home: Home) -> AbstractContextManager[None]:
        """Keep other writers of this name waiting, where the place has such a lock; nothing relies on it."""
        ...


def listed(name: str) -> str:
    """Return what a name is sorted by among keys: the slash that follows it counts."""
    return f"{name}/"


def version_label(number: int) -> str:
    """Return the folder name of a version."""
    return f"{number:06d}"


def number_of(label: str) -> int | None:
    """Return the number of a version's folder, None where it is no such name."""
    return int(label) if _NUMBER.fullmatch(label) else None


def entry_label(revision: int) -> str:
    """Return the file name of a log entry: the newest sorts first."""
    return f"{_TOP - revision:012d}.json"


def revision_of(label: str) -> int | None:
    """Return the revision of a log entry's file, None where it is no such name."""
    return _TOP - int(label.removesuffix(".json")) if _ENTRY.fullmatch(label) else None
