"""A version as a zip, made while it is sent."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

from server.store.digest import MANIFEST
from server.store.version import Version

CHUNK = 1 << 18
_EPOCH = (1980, 1, 1, 0, 0, 0)


class _Pipe(io.RawIOBase):
    """Collects what a zip file writes; it cannot go back, so that nothing of it has to be kept."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = b"".join(self.parts)
        self.parts.clear()
        return taken


def zip_name(version: Version) -> str:
    """Return the file name of a version's zip."""
    return f"{version.name}-{version.label}.zip"


def zipped(version: Version) -> Iterator[bytes]:
    """Yield a zip of the version's own files; the same bytes each time. Never more than a chunk is in memory.

    Tensors do not get smaller by compression, so nothing is compressed.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(version.folder.iterdir()):
            if path.name == MANIFEST:
                continue
            entry = zipfile.ZipInfo(path.name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            entry.file_size = path.stat().st_size
            with archive.open(entry, "w") as target, path.open("rb") as source:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield pipe.take()
    if rest := pipe.take():
        yield rest
