"""Open an adapter store by where it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from server.store.bucket import SCHEMES, Bucket
from server.store.disk import Disk
from server.store.durable import Link
from server.store.file_cache import FileCache
from server.store.store import CACHE_SIZE, AdapterStore


def open_store(where: str, *, cache: Path, cache_bytes: int) -> AdapterStore:
    """Open the store at a URL such as `s3://bucket/folder`, else in a folder, which is made where there is none.

    `cache` is a folder for what is fetched from a URL; no other process may use it. Raises Unavailable, and ValueError
    for a URL that cannot be used.
    """
    if "://" not in where:
        return local_store(Path(where))
    if not where.startswith(SCHEMES):
        raise ValueError(f"{where!r}: a store is a folder, or a URL that begins with {', '.join(SCHEMES)}")
    return AdapterStore(Bucket(where, FileCache(cache, cache_bytes)))


def local_store(
    root: Path, *, clock: Callable[[], float] = time.monotonic, link: Link = os.link, cache_size: int = CACHE_SIZE
) -> AdapterStore:
    """Open the store in a folder. Raises Unavailable."""
    return AdapterStore(Disk(root, link), clock=clock, cache_size=cache_size)
