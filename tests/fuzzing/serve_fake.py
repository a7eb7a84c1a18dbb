"""A whole API process over a fake engine, which answers at once: `python -m tests.fuzzing.serve_fake FOLDER`.

Prints its URL and a key, and serves until SIGTERM. There are three adapters, and a context of 128 tokens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path

import httpx

from server.app import create_app
from server.formats.base import read_base_model
from server.service.tenants import add_key
from server.serving import DrainingServer, bind
from server.settings import Settings, make_plan
from tests.fakes import HELLO, FakeEngine
from tests.http import folders
from tests.http.conftest import MACHINE, until

ADAPTERS = {
    "soft": folders.soft_prompt(),
    "tasks": folders.multitask(2),
    "form": folders.templated("{v:0-3}Say {text} in {place}."),
}


async def main(folder: Path) -> None:
    """Serve until the signal."""
    model = folders.make_model(folder / "model")
    keys = folder / "keys.json"
    key = add_key(keys, "acme")
    settings = Settings(model=model, store=folder / "store", keys=keys)
    engine = FakeEngine(hello=dataclasses.replace(HELLO, max_model_len=128))
    app = create_app(settings, make_plan(settings, read_base_model(model), MACHINE), engine)
    bound = bind("127.0.0.1", 0)
    server = DrainingServer(app, settings.shutdown_timeout)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await until(lambda: server.started, 10)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, headers={"Authorization": f"Bearer {key}"}) as client:
        for name, files in ADAPTERS.items():
            upload = [("files", (file, data)) for file, data in files.items()]
            (await client.post("/v1/adapters", data={"name": name}, files=upload)).raise_for_status()
    sys.stdout.write(f"{url} {key}\n")
    sys.stdout.flush()
    await serving


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
