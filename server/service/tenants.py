"""Tenants and their API keys: a file of hashed keys, read again whenever it changes.

A key is `wb_<id>_<secret>`: 8 and 43 characters of the URL-safe alphabet. The secret has 256 bits, so its plain
SHA-256 is all that the file needs to hold. The file is JSON:

    {"keys": [{"id": "…", "tenant": "acme", "sha256": "<hex>", "created": 1700000000}]}
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import string
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import Unauthorized
from server.formats.names import check_tenant

logger = logging.getLogger(__name__)

REREAD_SECONDS = 2.0
"""The file is looked at most this often."""

_KEY = re.compile(r"wb_([A-Za-z0-9]{8})_([A-Za-z0-9]{43})")
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks: the tenant, and the id of the key that said so (empty without keys)."""

    name: str
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One line of the keys file."""

    id: str
    tenant: str
    sha256: str
    created: int


class KeyRing:
    """Authenticates callers against the keys file at `path`, or takes everybody for `default` where `path` is None."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._records: dict[str, KeyRecord] = {}
        self._seen: tuple[int, int, int] | None = None
        self._looked = float("-inf")

    @property
    def open(self) -> bool:
        """Whether nobody needs a key."""
        return self._path is None

    def authenticate(self, authorization: str | None) -> Tenant:
        """Return the tenant that an `Authorization` header names. Raises Unauthorized."""
        if self._path is None:
            return Tenant("default")
        scheme, _, key = (authorization or "").partition(" ")
        match = _KEY.fullmatch(key.strip())
        if scheme.lower() != "bearer" or match is None:
            raise Unauthorized("an API key is needed: send it as `Authorization: Bearer wb_…`")
        self._refresh(self._path)
        record = self._records.get(match[1])
        # An unknown id is compared too, so that its answer takes as long.
        expected = "" if record is None else record.sha256
        if not hmac.compare_digest(_hash(match[2]), expected.ljust(64)) or record is None:
            raise Unauthorized("this API key is not known")
        return Tenant(record.tenant, record.id)

    def _refresh(self, path: Path) -> None:
        now = self._clock()
        if now - self._looked < REREAD_SECONDS:
            return
        self._looked = now
        try:
            stat = path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._records = {record.id: record for record in read_keys(path)}
                self._seen = seen
        except FileNotFoundError:
            self._records, self._seen = {}, None
        except (OSError, ValueError) as error:
            logger.error("the keys file is left as it was last read: %s", error)


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
    """Return the file's keys; none where there is no file. Raises ValueError with the reason on anything malformed."""
    try:
        document: Any = json.loads(path.read_bytes())
        records = tuple(KeyRecord(**record) for record in document["keys"])
        if not all(isinstance(text, str) for r in records for text in (r.id, r.tenant, r.sha256)):
            raise TypeError("id, tenant and sha256 are text")
        return records
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a keys file: {error}") from error


def add_key(path: Path, tenant: str) -> str:
    """Add a key for `tenant` to the file, which is made if missing, and return the key: nothing else knows it.

    Raises InvalidRequest for a name that cannot be a tenant's, and ValueError as `read_keys`.
    """
    check_tenant(tenant)
    key_id, secret = _draw(8), _draw(43)
    with _locked(path):
        records = (*read_keys(path), KeyRecord(key_id, tenant, _hash(secret), int(time.time())))
        _replace(path, records)
    return f"wb_{key_id}_{secret}"


def add_first_key(path: Path, tenant: str) -> str | None:
    """As `add_key`, but only where the file holds no key yet; None where it does."""
    return None if read_keys(path) else add_key(path, tenant)


def _draw(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two writers from losing each other's key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, records: tuple[KeyRecord, ...]) -> None:
    """Write the whole file beside itself and move it into place: readers see the old one or the new one."""
    document = {"keys": [{name: getattr(r, name) for name in KeyRecord.__slots__} for r in records]}
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
