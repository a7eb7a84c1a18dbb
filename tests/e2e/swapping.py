"""Clients stream without pause while an alias flips under them and other adapters come and go."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.tiny import soft_prompt

PROMPTS = ("What is it?", "Tell me.", "Once upon a time", "x")
MAX_TOKENS = 12


@dataclass
class Outcome:
    """What clients saw."""

    answers: Counter[str] = field(default_factory=Counter)  # by digest
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    flips: int = 0
    published: int = 0
    deleted: int = 0
    evicted: int = 0


async def swap_under_load(url: str, folder: Path, *, clients: int, flips: int) -> Outcome:
    """Let `clients` stream from `hot@prod` until the alias was moved `flips` times; compare every answer.

    Each has to be the answer of the version whose digest it carries, asked alone before, token by token.
    """
    outcome = Outcome()
    limits = httpx.Limits(max_connections=clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        digests = [await publish(client, "hot", soft_prompt(folder / f"hot{seed}", seed)) for seed in (1, 2)]
        expected = {}
        for number, digest in enumerate(digests, start=1):
            for prompt in PROMPTS:
                expected[digest, prompt] = (await ask(client, f"hot@v{number}", prompt, stream=False))[1]
        assert len(set(expected.values())) == len(expected), "the versions answer differently"
        await move(client, 1)
        done = asyncio.Event()

        async def load(number: int) -> None:
            turn = number
            while not done.is_set():
                turn += 1
                prompt = PROMPTS[turn % len(PROMPTS)]
                try:
                    digest, text = await ask(client, "hot@prod", prompt, stream=turn % 3 > 0)
                except (AssertionError, httpx.HTTPError) as error:
                    outcome.failures.append(repr(error))
                    continue
                outcome.answers[digest] += 1
                if expected.get((digest, prompt)) != text:
                    outcome.wrong.append(f"{digest} {prompt!r}: {text!r}")

        async def churn() -> None:
            """Publish, use, evict and delete other adapters, and evict the hot one, for as long as it lasts."""
            turn = 0
            while not done.is_set():
                turn += 1
                name = f"side{turn % 3}"
                await publish(client, name, soft_prompt(folder / f"side-{turn}", 1000 + turn))
                outcome.published += 1
                await ask(client, name, "x", stream=False)
                for evicted, version in ((name, "latest"), ("hot", f"v{1 + turn % 2}")):
                    path = f"/v1/adapters/{evicted}/residency"
                    reply = await client.put(path, params={"version": version}, json={"evict": True})
                    assert reply.status_code == 200, reply.text
                    outcome.evicted += 1
                if turn % 3 == 0:
                    reply = await client.delete(f"/v1/adapters/{name}")
                    assert reply.status_code == 204, reply.text
                    outcome.deleted += 1

        tasks = [asyncio.create_task(load(number)) for number in range(clients)]
        churning = asyncio.create_task(churn())
        for turn in range(flips):
            await move(client, 1 + (turn + 1) % 2)
            outcome.flips += 1
            await asyncio.sleep(0.002)
        done.set()
        await asyncio.gather(churning, *tasks)
    return outcome


async def publish(client: httpx.AsyncClient, name: str, folder: Path) -> str:
    """Publish a folder and return its digest."""
    files = await asyncio.to_thread(
        lambda: [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    )
    reply = await client.post("/v1/adapters", data={"name": name}, files=files)
    assert reply.status_code == 201, reply.text
    digest: str = reply.json()["digest"]
    return digest


async def move(client: httpx.AsyncClient, version: int) -> None:
    """Let `prod` mean a version."""
    reply = await client.put("/v1/adapters/hot/aliases/prod", json={"version": version})
    assert reply.status_code == 200, reply.text


async def ask(client: httpx.AsyncClient, adapter: str, prompt: str, *, stream: bool) -> tuple[str, str]:
    """Return the digest that answered, and the token ids as text."""
    body: dict[str, Any] = {"prompt": prompt, "adapter": adapter, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    body |= {"stream": stream, "return_token_ids": True}
    if not stream:
        reply = await client.post("/v1/generate", json=body)
        assert reply.status_code == 200, reply.text
        told = reply.json()
        return told["adapter"]["digest"], str(told["choices"][0]["token_ids"])
    ids: list[int] = []
    digest = ""
    async with client.stream("POST", "/v1/generate", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            digest = event.get("adapter", {}).get("digest", digest) if event.get("adapter") else digest
            for choice in event["choices"]:
                ids += choice.get("token_ids") or []
    return digest, str(ids)
