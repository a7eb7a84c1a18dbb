"""A real engine in this process, stepped by the event loop: an `EngineClient` for tests of the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.core import AdapterSource, EngineConfig, SamplingParams, Scoring
from server.engine.loading import build_engine
from server.engine.loop import Engine
from server.engine.messages import Abort, Check, CheckResult, Forget, Hello, StepReport, Submit
from server.errors import error_of
from tests.fakes import FakeStream


class InlineEngine:
    """Like the engine process, without one. `computed` counts the tokens that went through the model."""

    def __init__(self, config: EngineConfig) -> None:
        self.computed = 0
        self._engine, self._hello = build_engine(config)
        self._streams: dict[int, FakeStream] = {}
        self._checks: dict[int, asyncio.Future[CheckResult]] = {}
        self._listeners: list[Callable[[StepReport], None]] = []
        self._number = 0
        self._work = asyncio.Event()
        self._looping: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return True

    @property
    def hello(self) -> Hello:
        return self._hello

    async def start(self) -> None:
        self._looping = asyncio.create_task(self._loop())

    async def wait_ready(self, seconds: float) -> None:
        """It is."""

    async def close(self) -> None:
        assert self._looping is not None
        self._looping.cancel()
        await asyncio.gather(self._looping, return_exceptions=True)

    def submit(
        self,
        tokens: tuple[int, ...],
        params: SamplingParams,
        adapter: AdapterSource | None = None,
        salt: str | None = None,
        scoring: Scoring | None = None,
    ) -> FakeStream:
        self._number += 1
        stream = FakeStream(self._number, tokens, params, adapter, salt, scoring)
        self._streams[stream.number] = stream
        self._send(Submit(stream.number, tokens, params, adapter, salt, scoring))
        return stream

    async def check(self, adapter: AdapterSource) -> None:
        self._number += 1
        verdict = self._checks[self._number] = asyncio.get_running_loop().create_future()
        self._send(Check(self._number, adapter))
        result = await verdict
        if result.code:
            raise error_of(result.code, result.message)

    def forget(self, digest: str) -> None:
        self._send(Forget(digest))

    def on_report(self, listener: Callable[[StepReport], None]) -> None:
        self._listeners.append(listener)

    def on_death(self, listener: Callable[[], None]) -> None:
        """It never dies."""

    @property
    def engine(self) -> Engine:
        """What it drives."""
        return self._engine

    def _send(self, message: Submit | Check | Forget | Abort) -> None:
        self._engine.inbox.put(message)
        self._work.set()

    async def _loop(self) -> None:
        while True:
            if not (self._streams or self._checks):
                self._work.clear()
                await self._work.wait()
            for message in self._engine.drain(block=False):
                assert message is not None
                self._engine.handle(message)
            for report in self._engine.step():
                if isinstance(report, CheckResult):
                    self._checks.pop(report.check).set_result(report)
                else:
                    assert isinstance(report, StepReport)
                    self._spread(report)
            for stream in [stream for stream in self._streams.values() if stream.ended]:
                del self._streams[stream.number]
                self._send(Abort(stream.number))
            await asyncio.sleep(0)

    def _spread(self, report: StepReport) -> None:
        assert report.stats is not None
        self.computed += report.stats.batch_tokens
        for listener in self._listeners:
            listener(report)
        for started in report.started:
            self._streams[started.sequence].started = started
        for scores in report.scores:
            self._streams[scores.sequence].scores.append(scores)
        for event in report.events:
            stream = self._streams[event.sequence]
            if event.finish is not None:
                stream.ended = True
                del self._streams[event.sequence]
            stream.put(event)
        for failure in report.failures:
            stream = self._streams.pop(failure.sequence)
            stream.ended = True
            stream.put(error_of(failure.code, failure.message))
