"""Write so that a crash at any moment leaves all or nothing, and so that one of several writers wins."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.errors import StoreFull, Unavailable

Link = Callable[[Path, Path], None]
"""`os.link`, or what stands in for it where a file system has no hard links."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(folder: Path, root: Path) -> None:
    """Create `folder` and what is missing of its parents below `root`, durably."""
    if folder == root or folder.is_dir():
        return
    make_folders(folder.parent, root)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def write_new(target: Path, data: bytes, scratch: Path, link: Link) -> None:
    """Create `target` with its whole content at once. Raises FileExistsError where it exists.

    `scratch` is a folder of this writer on the same file system. Without hard links the file is created empty and then
    written; readers must take an incomplete one as absent.
    """
    draft = scratch / "draft"
    _write(draft, data)
    try:
        link(draft, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _write(target, data)
    finally:
        draft.unlink()
    sync(target.parent)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def hold(folder: Path) -> int:
    """Wait for the folder's advisory lock and return an open handle that holds it until it is closed.

    Writers take turns by it, across threads and processes. A file system without such locks lets everyone pass: what is
    create-only stays correct there. Raises FileNotFoundError where there is no such folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def try_hold(folder: Path) -> int | None:
    """Like `hold`, but None where another holds the lock, there is no such folder, or there are no locks."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for a while."""
    handle = hold(folder)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def disk(what: str) -> Iterator[None]:
    """Turn what the disk refuses into `Unavailable`, a full one into `StoreFull`, with `what` and the reason."""
    try:
        yield
    except OSError as error:
        refusal = StoreFull if error.errno in _NO_ROOM else Unavailable
        raise refusal(f"{what}: {error.strerror or error}", retry_after=30) from error
