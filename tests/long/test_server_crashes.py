"""A whole server is killed while adapters are published, moved and deleted; the next one finds all or nothing."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import httpx

from server.store.digest import files_digest
from server.store.opening import local_store
from tests.e2e.running import running
from tests.e2e.tiny import make_tiny, soft_prompt
from tests.long.recording import record

ROUNDS = 10
SMALL = ("--kv-memory", "4MiB", "--prefix-memory", "2MiB", "--max-seqs", "8", "--threads", "1")


def busy(url: str, folder: Path, start: int) -> None:
    """Publish, move and delete until nobody answers."""
    turn = start
    try:
        with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
            while True:
                turn += 1
                adapter = soft_prompt(folder / str(turn), turn)
                files = [("files", (path.name, path.read_bytes())) for path in sorted(adapter.iterdir())]
                made = client.post("/v1/adapters", data={"name": f"n{turn % 3}", "alias": "prod"}, files=files)
                assert made.status_code == 201, made.text
                if turn % 4 == 0:
                    client.post(f"/v1/adapters/n{turn % 3}/aliases/prod:rollback")
                if turn % 7 == 0:
                    assert client.delete(f"/v1/adapters/n{turn % 3}").status_code == 204
    except httpx.TransportError:
        return


def test_a_killed_server_leaves_whole_versions_or_none(tmp_path: Path) -> None:
    model, chance, versions = make_tiny(tmp_path / "model"), random.Random(4), 0
    for turn in range(ROUNDS):
        with running(tmp_path / "store", tmp_path, *SMALL, model=model) as server:
            with server.client() as client:  # what the one before left can be used
                for card in client.get("/v1/adapters").json()["data"]:
                    for alias in card["aliases"]:
                        body = {"prompt": "x", "adapter": f"{card['name']}@{alias}", "max_tokens": 1}
                        assert client.post("/v1/generate", json=body).status_code == 200
            work = threading.Thread(target=busy, args=(server.url, tmp_path / "adapters", turn * 10_000))
            work.start()
            time.sleep(chance.uniform(0.5, 2.0))
            server.process.kill()
            server.process.wait()
            work.join(30)
        store = local_store(tmp_path / "store")
        for adapter in store.page("default")[0]:
            for alias, number in adapter.pointers.aliases:
                found = store.resolve("default", adapter.name, alias=alias)
                assert (found.number, files_digest(found.folder)) == (number, found.digest)
            versions += len(store.versions("default", adapter.name))
    assert versions > ROUNDS
    record("store_crashes", {"whole servers killed": ROUNDS})
