"""Versions in an object store: S3 and what speaks like it, Google Cloud Storage, Azure.

A bucket has neither renames nor locks, but every one of these can create an object only where there is none. A
version's number is taken by creating `claim` in its folder, its files follow, and its manifest comes last: before that
there is no version. What is read is fetched into a cache on the disk.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import from_url

from server.errors import AdapterNotFound, Unavailable
from server.formats.names import is_name
from server.store.backend import LOG, VERSIONS, Home, entry_label, listed, number_of, revision_of, version_label
from server.store.digest import MANIFEST
from server.store.file_cache import FileCache

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("s3://", "gs://", "az://")
CLAIM = "claim"
LEFT_AFTER = timedelta(days=1)
"""How old a version without a manifest is before it counts as one whose writer died."""

_log = logging.getLogger(__name__)
_PAGE = 1000
_LAST = "~"  # sorts after every file and folder of a name
# Plain HTTP is only used where an endpoint's own address says so, as for a server in one's own network.
_CLIENT: ClientConfig = {"allow_http": True, "timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=5)}
_RETRY: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}


class Bucket:
    """A `Backend` at a URL such as `s3://bucket/folder`; the environment says with whose credentials.

    `cache` holds what was fetched, and the folders for uploads. Raises ValueError for a URL that is none of `SCHEMES`.
    """

    remote = True

    def __init__(self, url: str, cache: FileCache) -> None:
        if not url.startswith(SCHEMES):
            raise ValueError(f"{url!r} is no URL of an object store: it begins with {', '.join(SCHEMES)}")
        try:
            self._store: ObjectStore = from_url(url, client_options=_CLIENT, retry_config=_RETRY)
        except (BaseError, ValueError) as error:
            raise ValueError(f"{url!r} cannot be used: {_first_line(error)}") from error
        self.where = url
        self.staging = cache.staging
        self._cache = cache

    def tenants(self) -> list[str]:
        return self._folders("")

    def names(self, tenant: str, after: str = "") -> Iterator[tuple[str, int | None]]:
        offset = f"{tenant}/{after}/{_LAST}" if after else None
        last = after
        while True:
            page = self._page(tenant, offset)
            for path in page:
                parts = path.split("/")
                if len(parts) > 3 and parts[1] != last and is_name(parts[1]):
                    last = parts[1]
                    yield last, revision_of(parts[3]) if parts[2] == LOG else None
            if len(page) < _PAGE:
                return
            offset = f"{tenant}/{page[-1].split('/')[1]}/{_LAST}"

    def revisions(self, home: Home) -> list[int]:
        found = (revision_of(path.rpartition("/")[2]) for path in self._page(f"{home}/{LOG}", None))
        return [revision for revision in found if revision is not None]

    def entry(self, home: Home, revision: int) -> bytes:
        return self._get(f"{home}/{LOG}/{entry_label(revision)}")

    def append(self, home: Home, revision: int, entry: bytes) -> None:
        self._create(f"{home}/{LOG}/{entry_label(revision)}", entry)

    def trim(self, home: Home, below: int) -> None:
        with self._told():
            pages = obstore.list(self._store, f"{home}/{LOG}", offset=f"{home}/{LOG}/{entry_label(below)}")
            old = [meta["path"] for page in pages for meta in page]
            if old:
                obstore.delete(self._store, old)

    def numbers(self, home: Home) -> list[int]:
        # Not by folders: some servers keep those when they are empty.
        with self._told():
            pages = obstore.list(self._store, f"{home}/{VERSIONS}", chunk_size=_PAGE)
            labels = {meta["path"].split("/")[-2] for page in pages for meta in page}
        return sorted((number for label in labels if (number := number_of(label)) is not None), reverse=True)

    def manifest(self, home: Home, number: int) -> bytes | None:
        try:
            return self._get(f"{_version(home, number)}/{MANIFEST}")
        except FileNotFoundError:
            return None

    def place(self, home: Home, number: int, staged: Path) -> bool:
        place = _version(home, number)
        try:
            self._create(f"{place}/{CLAIM}", secrets.token_bytes(16))
        except FileExistsError:
            return False
        for path in sorted(staged.iterdir()):
            if path.name != MANIFEST:
                with self._told():
                    obstore.put(self._store, f"{place}/{path.name}", path)
        self._create(f"{place}/{MANIFEST}", (staged / MANIFEST).read_bytes())
        return True

    def folder(self, home: Home, number: int, digest: str) -> Path:
        return self._cache.folder(digest)

    def fetch(self, home: Home, number: int, digest: str) -> None:
        place = _version(home, number)

        def bring(name: str, target: Path) -> None:
            with _gone_is_not_found(home), self._told(), target.open("xb") as file:
                for chunk in obstore.get(self._store, f"{place}/{name}").stream():
                    file.write(chunk)

        def manifest() -> bytes:
            with _gone_is_not_found(home):
                return self._get(f"{place}/{MANIFEST}")

        self._cache.fill(digest, manifest, bring)

    def hold(self, digest: str) -> None:
        self._cache.hold(digest)

    def release(self, digest: str) -> None:
        self._cache.release(digest)

    def is_fetched(self, digest: str) -> bool:
        return digest in self._cache

    def remove(self, home: Home, number: int) -> None:
        place = _version(home, number)
        with self._told():
            obstore.delete(self._store, f"{place}/{MANIFEST}")
            paths = [meta["path"] for page in obstore.list(self._store, place) for meta in page]
            # The claim goes last: until then nobody else can take the number.
            paths.sort(key=lambda path: path.endswith(f"/{CLAIM}"))
            if paths:
                obstore.delete(self._store, paths)

    def has_incomplete(self, home: Home, numbers: list[int]) -> bool:
        return any(self.manifest(home, number) is None for number in numbers)

    def remove_incomplete(self, home: Home) -> None:
        with self._told():
            newest: dict[str, datetime] = {}
            whole: set[str] = set()
            for page in obstore.list(self._store, f"{home}/{VERSIONS}"):
                for meta in page:
                    label, name = meta["path"].split("/")[-2:]
                    newest[label] = max(newest.get(label, meta["last_modified"]), meta["last_modified"])
                    if name == MANIFEST:
                        whole.add(label)
        for label, at in newest.items():
            number = number_of(label)
            if number is not None and label not in whole and datetime.now(UTC) - at > LEFT_AFTER:
                self.remove(home, number)

    def exclusive(self, home: Home) -> AbstractContextManager[None]:
        return nullcontext()

    def _page(self, prefix: str, offset: str | None) -> list[str]:
        """Return the first keys below `prefix` after `offset`, sorted: one request."""
        with self._told():
            for page in obstore.list(self._store, prefix, offset=offset, chunk_size=_PAGE):
                return [meta["path"] for meta in page]
        return []

    def _folders(self, prefix: str) -> list[str]:
        with self._told():
            found = obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"]
        return sorted((path.rpartition("/")[2] for path in found if is_name(path.rpartition("/")[2])), key=listed)

    def _get(self, key: str) -> bytes:
        with self._told():
            return bytes(obstore.get(self._store, key).bytes())

    def _create(self, key: str, data: bytes) -> None:
        try:
            with self._told():
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except FileExistsError:
            # A request that was sent again, because its reply was lost, finds what it wrote itself.
            if self._get(key) != data:
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn obstore's errors into those of `Backend`."""
        try:
            yield
        except NotFoundError as error:
            raise FileNotFoundError(_first_line(error)) from error
        except AlreadyExistsError as error:
            raise FileExistsError(_first_line(error)) from error
        except BaseError as error:
            _log.error("the adapter store %s: %s", self.where, _first_line(error))
            raise Unavailable("the adapter store cannot be reached", retry_after=5) from error


@contextmanager
def _gone_is_not_found(home: Home) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise AdapterNotFound(f"adapter {home.name!r} was deleted meanwhile", param="adapter") from error


def _version(home: Home, number: int) -> str:
    return f"{home}/{VERSIONS}/{version_label(number)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
