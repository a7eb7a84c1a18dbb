"""Where things lie below the store's root, and how a version folder gets its place."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from server.formats.names import is_name
from server.store.durable import sync

STAGING = ".staging"
_NUMBER = re.compile(r"[0-9]{6,9}")


def version_folder(home: Path, number: int) -> Path:
    """Return the folder of a version of the name at `home`."""
    return home / "versions" / f"{number:06d}"


def log_folder(home: Path) -> Path:
    """Return the folder of the log of the name at `home`."""
    return home / "log"


def homes(root: Path) -> Iterator[Path]:
    """Yield the folder of every name of every tenant."""
    for tenant in names_in(root):
        for name in names_in(root / tenant):
            yield root / tenant / name


def names_in(folder: Path) -> list[str]:
    """Return the folders in `folder` that can be a tenant's or an adapter's, sorted; none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_name(entry.name) and entry.is_dir())
    except FileNotFoundError:
        return []


def numbers_in(home: Path) -> list[int]:
    """Return the numbers of all version folders of a name, complete or not, the highest first."""
    try:
        found = [int(name) for name in os.listdir(home / "versions") if _NUMBER.fullmatch(name)]
    except FileNotFoundError:
        return []
    return sorted(found, reverse=True)


def place_version(staged: Path, home: Path, after: int) -> int:
    """Move a complete folder to the first free number above `after` and every other, and return that.

    A folder that stands there is never replaced: a rename onto a folder that is not empty fails.
    """
    sync(staged)
    number = max([after, *numbers_in(home)])
    while True:
        number += 1
        try:
            staged.rename(version_folder(home, number))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue
        sync(home / "versions")
        return number
