"""One server with sixteen adapters of every kind, for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.core import AdapterKind
from tests.e2e.folders import write_folder
from tests.e2e.running import RunningServer, running

KINDS = list(AdapterKind)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Adapters `a0` to `a14` (six kinds, templates, several lengths) and the 1,024-token cartridge `long`."""
    folder = tmp_path_factory.mktemp("e2e")
    with running(folder / "store", folder, "--max-seqs", "64") as server, server.client() as client:
        for number in range(15):
            kind = KINDS[number % len(KINDS)]
            template = "{v:0-3}Review: {text}\nIn short:{v:4-7}" if number >= 12 and not kind.holds_kv else None
            length = 8 if template else 8 + 5 * number
            upload(client, f"a{number}", write_folder(folder / f"a{number}", kind, length, number, template))
        upload(client, "long", write_folder(folder / "long", AdapterKind.CARTRIDGE, 1024, 99))
        yield server


def upload(client, name: str, folder: Path, **form: str):  # type: ignore[no-untyped-def]
    """Publish a folder over HTTP and return the reply."""
    files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    reply = client.post("/v1/adapters", data={"name": name, **form}, files=files)
    assert reply.status_code in (200, 201), reply.text
    return reply
