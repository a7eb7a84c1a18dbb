"""What an adapter's name points to: a log of complete states, each created once, the newest first in a listing.

Creating the entry of the next revision fails for all but one writer. So a state is changed by reading the newest,
deriving the next and creating it: who comes second reads again and decides. Nothing is ever overwritten, and what a
name pointed to earlier stays known.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, replace

from server.formats.names import LATEST
from server.store.backend import Backend, Home

KEPT = 10_000
"""Entries of a log that are kept at least."""

TRIM_EVERY = 1000
"""Entries after which older ones are removed."""

MAX_ALIASES = 64

MAX_MANIFEST = 16 * 1024
"""Bytes. A larger manifest is not copied into the log."""


@dataclass(frozen=True, slots=True)
class Pointers:
    """One state of a name. Versions up to `deleted_through`, and those in `deleted`, are gone; no number comes twice.

    `at` is in seconds since the epoch, `revision` counts the entries of the log. `manifest` is a copy of that of
    `last_version`, which nearly every reader wants next, or empty.
    """

    revision: int = 0
    aliases: tuple[tuple[str, int], ...] = ()
    last_version: int = 0
    deleted_through: int = 0
    deleted: tuple[int, ...] = ()
    description: str = ""
    tags: tuple[str, ...] = ()
    at: int = 0
    manifest: bytes = b""

    @property
    def latest(self) -> int | None:
        """The number that the bare name means; None once it is deleted."""
        return self.alias(LATEST)

    def alias(self, alias: str) -> int | None:
        """The number that an alias means, None where there is no such alias."""
        return dict(self.aliases).get(alias)

    def live(self) -> list[int]:
        """Numbers that may be served, the newest first; some may not exist."""
        gone = set(self.deleted)
        return [number for number in range(self.last_version, self.deleted_through, -1) if number not in gone]

    def is_live(self, number: int) -> bool:
        """Whether this number may be served."""
        return self.deleted_through < number <= self.last_version and number not in self.deleted

    def published(self, number: int, manifest: bytes) -> Pointers:
        """Return the state after `number`, which is above all others, was published."""
        kept = manifest if len(manifest) <= MAX_MANIFEST else b""
        return replace(self, last_version=number, manifest=kept).pointing(LATEST, number)

    def pointing(self, alias: str, number: int) -> Pointers:
        """Return the state in which an alias means `number`."""
        return replace(self, aliases=tuple(sorted({**dict(self.aliases), alias: number}.items())))

    def without_alias(self, alias: str) -> Pointers:
        """Return the state without an alias."""
        return replace(self, aliases=tuple(item for item in self.aliases if item[0] != alias))

    def without_version(self, number: int) -> Pointers:
        """Return the state after one version was deleted; what lies below the oldest one left is told by one number."""
        deleted, through = {*self.deleted, number}, self.deleted_through
        while through + 1 in deleted:
            through += 1
        return replace(self, deleted_through=through, deleted=tuple(sorted(n for n in deleted if n > through)))

    def without_all(self, last_version: int) -> Pointers:
        """Return the state after the name was deleted with all numbers up to `last_version`."""
        return Pointers(revision=self.revision, last_version=last_version, deleted_through=last_version)


def read_pointers(backend: Backend, home: Home, newest: int | None = None) -> Pointers:
    """Return the newest state of a name, the empty one where there is none.

    `newest` is its revision where a listing has just told it. An entry that a crash left incomplete counts for its
    revision and is passed over.
    """
    revisions = backend.revisions(home) if newest is None else [newest]
    for revision in revisions:
        try:
            return replace(_decode(backend.entry(home, revision)), revision=revisions[0])
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            if newest is not None:
                return read_pointers(backend, home)
    return Pointers(revision=revisions[0]) if revisions else Pointers()


def earlier(backend: Backend, home: Home, alias: str, state: Pointers) -> int | None:
    """Return the version that an alias meant before it came to mean what it does in `state`; None where there is none.

    Versions that are gone do not count.
    """
    current = state.alias(alias)
    for revision in backend.revisions(home):
        if revision >= state.revision:
            continue
        try:
            number = _decode(backend.entry(home, revision)).alias(alias)
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            continue
        if number is not None and number != current and state.is_live(number):
            return number
    return None


def append_pointers(backend: Backend, home: Home, state: Pointers) -> Pointers:
    """Add `state` as the entry after its revision, and return it. Raises FileExistsError when another was first."""
    state = replace(state, revision=state.revision + 1, at=int(time.time()))
    backend.append(home, state.revision, _encode(state))
    if state.revision % TRIM_EVERY == 0 and state.revision > KEPT:
        backend.trim(home, state.revision - KEPT)
    return state


def _encode(state: Pointers) -> bytes:
    entry = {
        "revision": state.revision,
        "aliases": dict(state.aliases),
        "last_version": state.last_version,
        "deleted_through": state.deleted_through,
        "deleted": list(state.deleted),
        "description": state.description,
        "tags": list(state.tags),
        "at": state.at,
        "manifest": state.manifest.decode(),
        "writer": secrets.token_hex(8),  # so that a writer knows its own entry
    }
    return json.dumps(entry).encode() + b"\n"


def _decode(data: bytes) -> Pointers:
    entry = json.loads(data)
    aliases = tuple(sorted((str(alias), int(number)) for alias, number in entry["aliases"].items()))
    return Pointers(
        revision=int(entry["revision"]),
        aliases=aliases,
        last_version=int(entry["last_version"]),
        deleted_through=int(entry["deleted_through"]),
        deleted=tuple(int(number) for number in entry.get("deleted", ())),
        description=str(entry.get("description", "")),
        tags=tuple(str(tag) for tag in entry.get("tags", ())),
        at=int(entry["at"]),
        manifest=str(entry.get("manifest", "")).encode(),
    )
