"""`python -m benchmarks.null`: the API process as a user runs it, in front of the null engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from server import logs, serving
from server.app import create_app
from server.engine.client import ProcessEngine
from server.formats.base import read_base_model
from server.machine import read_machine
from server.settings import Settings, make_plan

COMMAND = (sys.executable, "-m", "benchmarks.null.engine")


def main(
    port: Annotated[int, typer.Option()], model: Annotated[Path, typer.Option()], store: Annotated[Path, typer.Option()]
) -> None:
    """Serve on 127.0.0.1 until SIGTERM."""
    given: dict[str, Any] = {"port": port, "model": model, "store": store}
    settings = Settings(**given)
    plan = make_plan(settings, read_base_model(settings.model), read_machine())
    bound = serving.bind(settings.host, settings.port)
    logs.configure()
    app = create_app(settings, plan, ProcessEngine(plan.engine, COMMAND))
    serving.DrainingServer(app, settings.shutdown_timeout).run(sockets=[bound])


if __name__ == "__main__":
    typer.run(main)
