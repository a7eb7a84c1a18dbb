"""A real server with keys and the shipped adapters, for clients to talk to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.core import AdapterKind
from server.service.tenants import add_key
from tests.clients.environments import environment, run_script
from tests.e2e.conftest import upload
from tests.e2e.folders import write_folder
from tests.e2e.running import ROOT, RunningServer, running

PROMPT = "The capital of Germany is"


@dataclass
class Served:
    """A server of four places and no queue, and a key of it."""

    server: RunningServer
    key: str
    folder: Path

    def generate(self, **body: Any) -> dict[str, Any]:
        """The reply of `/v1/generate`: what every client has to come to."""
        with self.server.client(headers={"Authorization": f"Bearer {self.key}"}) as client:
            reply = client.post("/v1/generate", json={"prompt": PROMPT, **body})
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = reply.json()
        return told

    def text(self, **body: Any) -> str:
        """The text of `/v1/generate`."""
        text: str = self.generate(**body)["choices"][0]["text"]
        return text

    def ask(self, script: Path, requirements: Path | None = None) -> dict[str, Any]:
        """Run a client's script and return what it tells."""
        python = environment(requirements)
        self.server.wait_ready()
        arguments = (self.server.url, self.key, str(self.server.engine_pid()), PROMPT)
        printed = run_script(python, script, *arguments, folder=self.folder)
        told: dict[str, Any] = json.loads(printed.splitlines()[-1])
        self.server.wait_ready()
        return told


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of all tests of clients: the shipped adapters, whose templates take a text, and `plain` for chats."""
    folder = tmp_path_factory.mktemp("clients")
    store, keys = folder / "store", folder / "keys.json"
    shutil.copytree(ROOT / "adapters_store" / "public", store / "public")
    key = add_key(keys, "acme")
    flags = ("--keys", str(keys), "--max-seqs", "4", "--queue", "0")
    with running(store, folder, *flags) as server:
        with server.client(headers={"Authorization": f"Bearer {key}"}) as client:
            upload(client, "plain", write_folder(folder / "plain", AdapterKind.PREFIX_TUNING, 64, seed=1))
        yield Served(server, key, folder)
