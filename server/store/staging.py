"""Folders for what is being written. Their writers hold a lock on them, so that a sweep takes only what died."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.store.durable import disk, hold, make_folders, try_hold

STAGING = ".staging"
WRITE = "the adapter store cannot be written"


@dataclass(frozen=True, slots=True)
class Staging:
    """A folder to write one adapter into before it is judged and published."""

    folder: Path


class StagingArea:
    """New folders below `<root>/.staging`, one for each writer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / STAGING

    @contextmanager
    def stage(self) -> Iterator[Staging]:
        """Give a new, empty folder, and remove what is left of it afterwards. Raises Unavailable."""
        with disk(WRITE):
            folder, handle = self._new()
        try:
            yield Staging(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def sweep(self) -> None:
        """Remove folders whose writers are gone."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            handle = try_hold(path)
            if handle is not None:
                shutil.rmtree(path)
                os.close(handle)

    def _new(self) -> tuple[Path, int]:
        """Create a folder and hold its lock; a sweep that comes between the two takes the folder."""
        make_folders(self.folder, self.root)
        while True:
            folder = self.folder / secrets.token_hex(8)
            folder.mkdir()
            try:
                handle = hold(folder)
            except FileNotFoundError:
                continue
            if folder.is_dir():
                return folder, handle
            os.close(handle)
