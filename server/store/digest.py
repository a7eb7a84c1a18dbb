"""The digest of a version: over the names and contents of its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a version. `sha256` in hex."""

    name: str
    sha256: str
    num_bytes: int


def stored_files(folder: Path) -> tuple[StoredFile, ...]:
    """Return the files of a version's folder without its manifest, sorted by name."""
    return tuple(_stored(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST)


def digest_of(files: tuple[StoredFile, ...]) -> str:
    """Return "sha256:…" over the lines that `sha256sum` prints for the files, sorted by name."""
    listing = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def files_digest(folder: Path) -> str:
    """Return the digest of a version's folder, read anew: to verify it, compare with the manifest's."""
    return digest_of(stored_files(folder))


def _stored(path: Path) -> StoredFile:
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(path.name, sha, file.tell())
