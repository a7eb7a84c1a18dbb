"""Two whole servers on one S3 store: what one publishes the other serves, and of fifty moves at once one wins."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import upload
from tests.e2e.running import RunningServer, running
from tests.e2e.tiny import make_tiny, soft_prompt
from tests.long.recording import record
from tests.store.buckets import BUCKET, environment, seaweed

SMALL = ("--kv-memory", "4MiB", "--prefix-memory", "2MiB", "--max-seqs", "8", "--threads", "1")
ROUNDS = 10
RACERS = 50


def served(client: httpx.Client, reference: str) -> str | None:
    """The digest that answers for a reference; None where there is no such adapter yet."""
    answer = client.post("/v1/generate", json={"prompt": "x", "adapter": reference, "max_tokens": 1})
    if answer.status_code == 404:
        return None
    assert answer.status_code == 200, answer.text
    digest: str = answer.json()["adapter"]["digest"]
    return digest


def seconds_until(client: httpx.Client, reference: str, digest: str) -> float:
    began = time.monotonic()
    while served(client, reference) != digest:
        assert time.monotonic() - began < 10
        time.sleep(0.02)
    return time.monotonic() - began


async def race(servers: tuple[RunningServer, RunningServer], name: str) -> list[int]:
    """Let `RACERS` clients of both servers move one alias to v2 from the state that they all have seen."""
    async with (
        httpx.AsyncClient(base_url=servers[0].url, timeout=60, trust_env=False) as one,
        httpx.AsyncClient(base_url=servers[1].url, timeout=60, trust_env=False) as other,
    ):
        seen = (await one.get(f"/v1/adapters/{name}")).headers["etag"]
        path, headers, body = f"/v1/adapters/{name}/aliases/prod", {"If-Match": seen}, {"version": 2}
        moves = [(one, other)[racer % 2].put(path, json=body, headers=headers) for racer in range(RACERS)]
        return [answer.status_code for answer in await asyncio.gather(*moves)]


def test_two_servers_on_one_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny(tmp_path / "model")
    (tmp_path / "weed").mkdir()
    with seaweed(tmp_path / "weed") as endpoint:
        for variable, value in environment(endpoint).items():
            monkeypatch.setenv(variable, value)
        store = f"s3://{BUCKET}/store"
        caches = [("--store-cache", str(tmp_path / f"cache{number}")) for number in range(2)]
        with (
            running(store, tmp_path, *SMALL, *caches[0], model=model) as first,
            running(store, tmp_path, *SMALL, *caches[1], model=model) as second,
            first.client() as one,
            second.client() as other,
        ):
            new, newer, moved = [], [], []
            for turn in range(ROUNDS):
                name = f"n{turn}"
                digests = []
                for version, seconds in ((0, new), (1, newer)):
                    adapter = soft_prompt(tmp_path / f"{name}-{version}", 2 * turn + version)
                    digests.append(upload(one, name, adapter, alias="prod").json()["digest"])
                    seconds.append(seconds_until(other, name, digests[-1]))
                assert served(other, f"{name}@prod") == digests[1]
                assert one.put(f"/v1/adapters/{name}/aliases/prod", json={"version": 1}).status_code == 200
                moved.append(seconds_until(other, f"{name}@prod", digests[0]))
                statuses = asyncio.run(race((first, second), name))
                assert sorted(statuses) == [200, *[412] * (RACERS - 1)]
                assert seconds_until(other, f"{name}@prod", digests[1]) <= 3
                assert seconds_until(one, f"{name}@prod", digests[1]) <= 3
    worst = max(*new, *newer, *moved)
    assert worst <= 3
    record(
        "two_servers",
        {
            "rounds": ROUNDS,
            "racers, one winner each time": RACERS,
            "worst seconds until the other serves": {
                "a new name": round(max(new), 3),
                "a new version": round(max(newer), 3),
                "a moved alias": round(max(moved), 3),
            },
        },
    )
