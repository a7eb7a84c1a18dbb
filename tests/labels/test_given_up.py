"""Labels that nobody waits for any more are not read to their end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.formats.base import read_base_model
from server.formats.judge import AdapterLimits
from server.metrics import Metrics
from server.service.adapters import AdapterService
from server.service.admission import Gate
from server.service.exchange import GenerateCommand
from server.service.generation import GenerationService
from server.service.prompting import Prompter, RenderedPrompt
from server.service.tenants import Tenant
from server.service.tokenizer import Tokenizer
from server.store.opening import local_store
from tests.fakes import FakeEngine
from tests.http.conftest import until
from tests.http.folders import make_model


class SlowPrompter(Prompter):
    """Stands still in its second rendering, the first with a label, until it is let go."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.labels: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def render(self, *parts: Any, label: str = "", **named: Any) -> RenderedPrompt:
        self.labels.append(label)
        if label:
            self.begun.set()
            assert self.go_on.wait(10)
        return super().render(*parts, label=label, **named)


@pytest.mark.parametrize("seconds", [None, 0.05])
async def test_reading_ends_with_the_one_who_waited(tmp_path: Path, seconds: float | None) -> None:
    folder = make_model(tmp_path / "model")
    base, tokenizer = read_base_model(folder), Tokenizer(folder)
    engine, gate, metrics, prompter = FakeEngine(), Gate(64), Metrics("m"), SlowPrompter(tokenizer, base)
    adapters = AdapterService(store=local_store(tmp_path / "store"), engine=engine, base=base, limits=AdapterLimits(64))
    service = GenerationService(
        engine=engine, adapters=adapters, prompter=prompter, tokenizer=tokenizer, base=base, gate=gate, metrics=metrics
    )
    await engine.start()
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    command = GenerateCommand(prompts=("x",), labels=("a", "b", "c"), timeout=seconds)
    opening = asyncio.create_task(service.open(Tenant("acme"), command))
    await until(prompter.begun.is_set)
    if seconds is None:
        opening.cancel()
    (outcome,) = await asyncio.gather(opening, return_exceptions=True)
    assert isinstance(outcome, BaseException)
    assert gate.open == 0
    prompter.go_on.set()
    await asyncio.to_thread(int)  # the only thread has done what it had
    assert prompter.labels == ["", "a"]
    await engine.close()
