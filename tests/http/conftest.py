"""A whole API process over a fake engine, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.app import create_app
from server.formats.base import read_base_model
from server.machine import Machine
from server.serving import DrainingServer, bind
from server.settings import Settings, make_plan
from tests.fakes import FakeEngine
from tests.http import folders

MACHINE = Machine(cores=2, memory=2**31, bfloat16=False, cuda=False, gpu_memory=0)


@dataclass
class Api:
    """One server: its app, its engine, a client of it."""

    app: FastAPI
    engine: FakeEngine
    client: httpx.AsyncClient
    store: Path
    keys: dict[str, str] = field(default_factory=dict)

    async def generate(self, **body: Any) -> httpx.Response:
        """POST /v1/generate."""
        return await self.client.post("/v1/generate", json=body)

    async def text(self, **body: Any) -> str:
        """The first choice's text; the answer must be 200."""
        response = await self.generate(**body)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["text"]
        return text

    async def publish(self, name: str, files: dict[str, bytes], **parts: str) -> httpx.Response:
        """POST /v1/adapters."""
        upload = [("files", (file, data)) for file, data in files.items()]
        return await self.client.post("/v1/adapters", data={"name": name, **parts}, files=upload)


MakeApi = Callable[..., Awaitable[Api]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model's folder."""
    return folders.make_model(tmp_path_factory.mktemp("model") / "bytes")


@pytest.fixture(scope="session")
def bos_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whose tokenizer begins every text with BOS."""
    return folders.make_model(tmp_path_factory.mktemp("model") / "bytes", bos=True)


@pytest.fixture
async def make_api(tmp_path: Path, model: Path, bos_model: Path) -> AsyncIterator[MakeApi]:
    """Makes servers; `listen=True` puts one behind a real socket, `bos=True` is over `bos_model`.

    They end with the test.
    """
    async with AsyncExitStack() as stack:

        async def make(
            engine: FakeEngine | None = None, *, listen: bool = False, bos: bool = False, **settings: Any
        ) -> Api:
            engine = engine or FakeEngine()
            store = tmp_path / "store"
            made = Settings(model=bos_model if bos else model, store=store, **settings)
            plan = make_plan(made, read_base_model(made.model), MACHINE)
            app = create_app(made, plan, engine)
            if listen:
                client = await _listen(stack, app, made.shutdown_timeout)
            else:
                await stack.enter_async_context(app.router.lifespan_context(app))
                transport = httpx.ASGITransport(app=app)
                client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
            await stack.enter_async_context(client)
            return Api(app, engine, client, store)

        yield make


@pytest.fixture
async def api(make_api: MakeApi) -> Api:
    """A server without keys."""
    return await make_api()


async def _listen(stack: AsyncExitStack, app: FastAPI, shutdown_timeout: float) -> httpx.AsyncClient:
    bound = bind("127.0.0.1", 0)
    server = DrainingServer(app, shutdown_timeout)
    app.state.server = server
    app.state.serving = running = asyncio.create_task(server.serve(sockets=[bound]))

    async def end() -> None:
        server.should_exit = True
        await asyncio.wait_for(running, 10)

    stack.push_async_callback(end)
    await until(lambda: server.started)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=10, trust_env=False)


def events(text: str) -> list[Any]:
    """The `data:` of each event of a stream; the last is the string [DONE]."""
    frames = [frame for frame in text.split("\n\n") if frame]
    assert all(frame.startswith("data: ") for frame in frames)
    data = [frame.removeprefix("data: ") for frame in frames]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    """Wait until the condition holds; fail after `seconds`."""
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    assert condition(), f"not within {seconds} seconds"
