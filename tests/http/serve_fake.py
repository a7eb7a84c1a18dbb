"""A server process over a fake engine that tells what a client of it sees while SIGTERM drains it.

    python -m tests.http.serve_fake MODEL STORE

Says "answering" once a request runs. After the signal, it says what /health/ready answers and its code, and the status
and the length of the answer that ran.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx

from server.app import create_app
from server.formats.base import read_base_model
from server.serving import DrainingServer, bind
from server.settings import Settings, make_plan
from tests.fakes import FakeEngine
from tests.http.conftest import MACHINE, until


def say(*words: object) -> None:
    """Write a line."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(model: Path, store: Path) -> None:
    """Serve until the signal."""
    settings = Settings(model=model, store=store)
    engine = FakeEngine()
    app = create_app(settings, make_plan(settings, read_base_model(model), MACHINE), engine)
    bound = bind("127.0.0.1", 0)
    server = DrainingServer(app, settings.shutdown_timeout)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await until(lambda: server.started, 10)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", trust_env=False) as client:
        engine.pause()
        body = {"prompt": "x", "max_tokens": 40}
        running = asyncio.create_task(client.post("/v1/generate", json=body))
        await until(lambda: bool(engine.running), 10)
        say("answering")
        await until(lambda: app.state.gate.draining, 10)
        ready = await client.get("/health/ready")
        say(ready.status_code, ready.json()["error"]["code"])
        engine.resume()
        answer = await running
        say(answer.status_code, len(answer.json()["choices"][0]["text"]))
    await serving


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
