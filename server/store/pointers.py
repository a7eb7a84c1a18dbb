"""What an adapter's name points to: a log of complete states, each created once, the newest first in a listing."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from server.store.durable import Link, write_new

LATEST = "latest"
_TOP = 10**12 - 1
_ENTRY = re.compile(r"[0-9]{12}\.json")


@dataclass(frozen=True, slots=True)
class Pointers:
    """One state of a name. Versions up to `deleted_through` are gone; numbers are never used again.

    `at` is in seconds since the epoch, `revision` counts the entries of the log.
    """

    revision: int = 0
    aliases: tuple[tuple[str, int], ...] = ()
    last_version: int = 0
    deleted_through: int = 0
    at: int = 0

    @property
    def latest(self) -> int | None:
        """The number that the bare name means; None once it is deleted."""
        return dict(self.aliases).get(LATEST)

    def live(self) -> range:
        """Numbers that may be served, the newest first; some may not exist."""
        return range(self.last_version, self.deleted_through, -1)

    def published(self, number: int) -> Pointers:
        """Return the state after `number` was published."""
        last = max(number, self.last_version)
        return replace(self, aliases=((LATEST, max(number, self.latest or 0)),), last_version=last)

    def deleted(self, last_version: int) -> Pointers:
        """Return the state after the name was deleted with all numbers up to `last_version`."""
        return replace(self, aliases=(), last_version=last_version, deleted_through=last_version)


def read_pointers(log: Path) -> Pointers:
    """Return the newest state of the log in this folder, the empty one where there is none.

    An entry that a crash left incomplete counts for its revision and is passed over.
    """
    try:
        names = sorted(name for name in os.listdir(log) if _ENTRY.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return Pointers()
    for name in names:
        try:
            state = _decode((log / name).read_bytes())
        except (ValueError, KeyError, TypeError):
            continue
        return replace(state, revision=_revision(names[0]))
    return Pointers(revision=_revision(names[0])) if names else Pointers()


def append_pointers(log: Path, state: Pointers, scratch: Path, link: Link) -> None:
    """Add `state` as the entry after its revision. Raises FileExistsError when another writer was first."""
    state = replace(state, revision=state.revision + 1, at=int(time.time()))
    write_new(log / f"{_TOP - state.revision:012d}.json", _encode(state), scratch, link)


def _revision(name: str) -> int:
    return _TOP - int(name.removesuffix(".json"))


def _encode(state: Pointers) -> bytes:
    entry = {
        "revision": state.revision,
        "aliases": dict(state.aliases),
        "last_version": state.last_version,
        "deleted_through": state.deleted_through,
        "at": state.at,
    }
    return json.dumps(entry).encode() + b"\n"


def _decode(data: bytes) -> Pointers:
    entry = json.loads(data)
    aliases = tuple((str(alias), int(number)) for alias, number in entry["aliases"].items())
    return Pointers(
        revision=int(entry["revision"]),
        aliases=aliases,
        last_version=int(entry["last_version"]),
        deleted_through=int(entry["deleted_through"]),
        at=int(entry["at"]),
    )
