"""Requests to a server's API, with errors that a person can act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from server.errors import WaybillError, error_of


@dataclass(frozen=True, slots=True)
class Reference:
    """`[tenant/]name[@version]`, as a person types it; the server judges it."""

    name: str
    tenant: str | None
    version: str

    @property
    def query(self) -> dict[str, str]:
        """The query that chooses the tenant."""
        return {} if self.tenant is None else {"tenant": self.tenant}


def parse(text: str) -> Reference:
    """Split a reference. The version is `latest` where none is said."""
    path, _, version = text.partition("@")
    tenant, slash, name = path.rpartition("/")
    return Reference(name, tenant if slash else None, version or "latest")


class Connection:
    """A server at `url`, asked with an API key where it wants one.

    What the server refuses is raised as the `WaybillError` that it answered; ConnectionError where there is none.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON that a path answers."""
        return self._json("GET", path, params=query)

    def send(self, method: str, path: str, body: Any = None, *, revision: int | None = None, **query: Any) -> Any:
        """Send a change and return the JSON that it answers, None where that is nothing."""
        headers = {} if revision is None else {"If-Match": f'"{revision}"'}
        return self._json(method, path, json=body, headers=headers, params=query)

    def upload(self, texts: Mapping[str, str], files: list[tuple[str, BinaryIO]]) -> tuple[int, Any]:
        """Publish files, read as they are sent; return the status and the JSON."""
        parts = [("files", (name, file)) for name, file in files]
        with self._client() as client:
            response = client.post("/adapters", data=dict(texts), files=parts, timeout=600)
            return response.status_code, _judged(response).json()

    @contextmanager
    def download(self, path: str, query: Mapping[str, Any]) -> Iterator[httpx.Response]:
        """Give the answer to read from, as it comes."""
        with self._client() as client, client.stream("GET", path, params=query) as response:
            if response.is_error:
                response.read()
            yield _judged(response)

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        with self._client() as client:
            response = _judged(client.request(method, path, **arguments))
            return response.json() if response.content else None

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        base = f"{self.url.rstrip('/')}/v1"
        try:
            with httpx.Client(base_url=base, headers=self._headers, timeout=60) as client:
                yield client
        except httpx.HTTPError as error:
            raise ConnectionError(f"no answer from {self.url}: {error or type(error).__name__}") from error


def adapter_path(name: str, *rest: str) -> str:
    """Return the path of an adapter, or of what is below it."""
    return "/".join(["/adapters", *(quote(part, safe=":") for part in (name, *rest))])


def plain_files(folder: Path) -> list[Path]:
    """Return a folder's files, sorted. Raises ValueError for one that holds anything else, or nothing."""
    found = sorted(folder.iterdir())
    for path in found:
        if not path.is_file():
            raise ValueError(f"{path} is not a file: an adapter is a folder of plain files")
    if not found:
        raise ValueError(f"{folder} is empty")
    return found


def _judged(response: httpx.Response) -> httpx.Response:
    if not response.is_error:
        return response
    try:
        error = response.json()["error"]
        raise error_of(str(error["code"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        raise WaybillError(f"the server answered {response.status_code}") from None
