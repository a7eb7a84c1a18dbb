"""The API process's side of the seam: `EngineClient`, what it promises, and the real one that owns a process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from server.core import AdapterSource, EngineConfig, Parity, PromptScores, SamplingParams, Scoring, TokenEvent
from server.engine.messages import (
    HEADER,
    MAX_FRAME,
    Abort,
    Check,
    CheckResult,
    Configure,
    Forget,
    Hello,
    Pin,
    Refused,
    Started,
    StepReport,
    Submit,
    ToEngine,
    Verify,
    VerifyResult,
    decode,
    encode,
)
from server.errors import EngineRestarting, WaybillError, error_of

logger = logging.getLogger(__name__)

RESTART_WAIT = 30.0
"""Seconds that whoever needs the engine waits for one that is being restarted."""


class SequenceStream(Protocol):
    """The tokens of one submitted sequence, in order.

    Iterating yields `TokenEvent`s; the last has `finish` set. It raises a `server.errors.WaybillError` where the
    sequence failed: `EngineFault`, `AdapterRejected`, or `EngineRestarting` when the engine process died.
    """

    started: Started | None
    """Set before the first event is yielded."""

    scores: list[PromptScores]
    """What was asked for of the prompt's tokens, in their order; complete before the first event is yielded."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]: ...

    def listen(self, take: Callable[[TokenEvent], None], end: Callable[[WaybillError | None], None]) -> None:
        """Call `take` with every event as it arrives, then `end` once, instead of iterating.

        `end` gets the error that iterating would raise, None after the last event or an abort. Neither may raise.
        """
        ...

    def abort(self) -> None:
        """End the sequence and free its memory. Safe at any time, also twice and after the end."""
        ...


class EngineClient(Protocol):
    """What the service needs of an engine."""

    @property
    def ready(self) -> bool:
        """Whether the engine takes sequences now."""
        ...

    @property
    def hello(self) -> Hello:
        """What the engine said when it last came up. Raises EngineRestarting before that."""
        ...

    async def start(self) -> None:
        """Start the engine and wait until it is ready. Raises RuntimeError with its reason when it refuses."""
        ...

    async def wait_ready(self, seconds: float) -> None:
        """Return once the engine is ready. Raises EngineRestarting when it is not within `seconds`."""
        ...

    async def close(self) -> None:
        """End the engine. Open sequences fail with EngineRestarting."""
        ...

    def submit(
        self,
        tokens: tuple[int, ...],
        params: SamplingParams,
        adapter: AdapterSource | None = None,
        salt: str | None = None,
        scoring: Scoring | None = None,
    ) -> SequenceStream:
        """Queue one sequence. Raises EngineRestarting when the engine is down.

        Sequences with the same `salt` may reuse what others have computed for the same start. With `scoring`, the
        stream's `scores` tell of the prompt; `params.max_tokens` may then be 0, and the only event has no token.
        """
        ...

    async def check(self, adapter: AdapterSource) -> None:
        """Judge an adapter's values on the engine. Raises AdapterRejected with the reason."""
        ...

    async def verify(self, tokens: tuple[int, ...], max_tokens: int, adapter: AdapterSource) -> Parity:
        """Compare what is served for a sequence and its greedy tokens with the base model run alone.

        Other sequences wait while the model runs alone. Raises what such a sequence fails with.
        """
        ...

    def forget(self, digest: str) -> None:
        """Drop what the engine holds of this adapter digest, once no sequence uses it."""
        ...

    def pin(self, digest: str, pinned: bool) -> None:
        """Let what the engine holds of this adapter digest be evicted last of all, or no longer; until it restarts."""
        ...

    def on_report(self, listener: Callable[[StepReport], None]) -> None:
        """Call `listener` with every step's report (for metrics)."""
        ...

    def on_death(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time the engine ends without having been told to."""
        ...


class _Stream:
    """One sequence's inbox on the API side."""

    def __init__(self, sequence: int, send: Callable[[ToEngine], None]) -> None:
        self.sequence = sequence
        self.started: Started | None = None
        self.scores: list[PromptScores] = []
        self._send = send
        self._events: deque[TokenEvent] = deque()
        self._error: WaybillError | None = None
        self._ended = False
        self._arrived = asyncio.Event()
        self._take: Callable[[TokenEvent], None] | None = None
        self._end: Callable[[WaybillError | None], None] | None = None

    def push(self, event: TokenEvent) -> None:
        ends = event.finish is not None and not self._ended
        self._ended = self._ended or ends  # first, so that a reader who aborts on the last event aborts nothing
        if self._take is None:
            self._events.append(event)
        else:
            self._take(event)
        if ends:
            self._tell_end()
        else:
            self._arrived.set()

    def fail(self, error: WaybillError) -> None:
        self._error = error
        self._finish()

    def abort(self) -> None:
        if not self._ended:
            self._send(Abort(self.sequence))
            self._finish()

    def listen(self, take: Callable[[TokenEvent], None], end: Callable[[WaybillError | None], None]) -> None:
        while self._events:
            take(self._events.popleft())
        self._take, self._end = take, end
        if self._ended:
            end(self._error)

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._tell_end()

    def _tell_end(self) -> None:
        self._arrived.set()
        if self._end is not None:
            self._end(self._error)

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._error is not None:
                raise self._error
            if self._ended:
                return
            self._arrived.clear()
            await self._arrived.wait()


class ProcessEngine:
    """An `EngineClient` whose engine is a process of its own, started again whenever it dies.

    The two share a socket pair that the child inherits. When this process dies, the child reads the end of the stream
    and ends too; when the child dies, every open sequence fails with EngineRestarting and a new child is started.
    """

    def __init__(
        self, config: EngineConfig, command: tuple[str, ...] = (sys.executable, "-m", "server.engine")
    ) -> None:
        self._config = config
        self._command = command
        self._sequences = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._trials: dict[int, asyncio.Future[CheckResult | VerifyResult]] = {}
        self._listeners: list[Callable[[StepReport], None]] = []
        self._mourners: list[Callable[[], None]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._hello: Hello | None = None
        self._up = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def ready(self) -> bool:
        return self._up.is_set()

    @property
    def hello(self) -> Hello:
        if self._hello is None:
            raise EngineRestarting("the engine is starting", retry_after=5)
        return self._hello

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        reader = await self._spawn()
        await self._greet(reader)
        self._reading = asyncio.create_task(self._run(reader))

    async def wait_ready(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._up.wait(), seconds)
        except TimeoutError:
            raise EngineRestarting("the engine is being restarted", retry_after=5) from None

    async def close(self) -> None:
        self._closing = True
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._lose("the server is shutting down")
        await self._reap(seconds=5.0)

    def submit(
        self,
        tokens: tuple[int, ...],
        params: SamplingParams,
        adapter: AdapterSource | None = None,
        salt: str | None = None,
        scoring: Scoring | None = None,
    ) -> SequenceStream:
        if not self.ready:
            raise EngineRestarting("the engine is being restarted", retry_after=5)
        stream = _Stream(next(self._sequences), self._send)
        self._streams[stream.sequence] = stream
        self._send(Submit(stream.sequence, tokens, params, adapter, salt, scoring))
        return stream

    async def check(self, adapter: AdapterSource) -> None:
        number = next(self._sequences)
        await self._try(number, Check(number, adapter))

    async def verify(self, tokens: tuple[int, ...], max_tokens: int, adapter: AdapterSource) -> Parity:
        number = next(self._sequences)
        result = await self._try(number, Verify(number, tokens, max_tokens, adapter))
        assert isinstance(result, VerifyResult), "a verification is answered as one"
        assert result.parity is not None, "what has no code has a finding"
        return result.parity

    async def _try(self, number: int, question: Check | Verify) -> CheckResult | VerifyResult:
        """Ask, and return the verdict. Raises the error that it names."""
        if not self.ready:
            raise EngineRestarting("the engine is being restarted", retry_after=5)
        verdict: asyncio.Future[CheckResult | VerifyResult] = asyncio.get_running_loop().create_future()
        self._trials[number] = verdict
        self._send(question)
        try:
            result = await verdict
        except asyncio.CancelledError:
            self._send(Abort(number))
            raise
        finally:
            self._trials.pop(number, None)
        if result.code:
            raise error_of(result.code, result.message)
        return result

    def forget(self, digest: str) -> None:
        self._send(Forget(digest))

    def pin(self, digest: str, pinned: bool) -> None:
        self._send(Pin(digest, pinned))

    def on_report(self, listener: Callable[[StepReport], None]) -> None:
        self._listeners.append(listener)

    def on_death(self, listener: Callable[[], None]) -> None:
        self._mourners.append(listener)

    async def _spawn(self) -> asyncio.StreamReader:
        """Start a child that inherits one end of a fresh socket pair; a session of its own keeps Ctrl-C from it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, str(theirs.fileno()), pass_fds=[theirs.fileno()], start_new_session=True
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=2**20)
        self._send(Configure(self._config))
        return reader

    async def _greet(self, reader: asyncio.StreamReader) -> None:
        """Wait for the child's first word. Raises RuntimeError when it refuses or dies."""
        try:
            first = await _read_message(reader)
        except (asyncio.IncompleteReadError, OSError) as error:
            await self._reap(seconds=5.0)
            raise RuntimeError("the engine process ended while starting; its own output says why") from error
        if isinstance(first, Refused):
            await self._reap(seconds=5.0)
            raise RuntimeError(first.reason)
        if not isinstance(first, Hello):
            raise RuntimeError(f"the engine began with {type(first).__name__}")
        self._hello = first
        self._up.set()

    async def _run(self, reader: asyncio.StreamReader) -> None:
        """Deliver messages until the engine dies, then start another; forever."""
        while True:
            await self._deliver(reader)
            died = time.monotonic()
            self._lose("the engine process died; it is being restarted")
            status = await self._reap(seconds=1.0)
            logger.error("the engine process died (%s); it is being restarted", _cause(status))
            for listener in self._mourners:
                listener()
            reader = await self._respawn()
            logger.info("the engine is up again after %.1f seconds", time.monotonic() - died)

    async def _respawn(self) -> asyncio.StreamReader:
        """Start children until one is up, waiting longer after each that fails."""
        for attempt in itertools.count():
            try:
                reader = await self._spawn()
                await self._greet(reader)
                return reader
            except (OSError, RuntimeError) as error:
                logger.error("the engine did not restart: %s", error)
                await asyncio.sleep(min(2.0**attempt, 30.0))
        raise AssertionError("unreachable: the loop above has no end")

    async def _deliver(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                message = await _read_message(reader)
            except (asyncio.IncompleteReadError, OSError):
                return
            except (ValueError, KeyError, TypeError) as error:
                logger.error("the engine sent what cannot be read (%s); it is replaced", type(error).__name__)
                return
            if isinstance(message, StepReport):
                self._spread(message)
            elif isinstance(message, CheckResult | VerifyResult):
                number = message.check if isinstance(message, CheckResult) else message.verify
                verdict = self._trials.get(number)
                if verdict is not None and not verdict.done():
                    verdict.set_result(message)

    def _spread(self, report: StepReport) -> None:
        for started in report.started:
            if (stream := self._streams.get(started.sequence)) is not None:
                stream.started = started
        for scores in report.scores:
            if (stream := self._streams.get(scores.sequence)) is not None:
                stream.scores.append(scores)
        for event in report.events:
            if (stream := self._streams.get(event.sequence)) is not None:
                if event.finish is not None:
                    del self._streams[event.sequence]
                stream.push(event)
        for failure in report.failures:
            if (stream := self._streams.pop(failure.sequence, None)) is not None:
                stream.fail(error_of(failure.code, failure.message))
        for listener in self._listeners:
            try:
                listener(report)
            except Exception:  # a fault in a metric must not end the stream that every request depends on
                logger.exception("a listener failed")

    def _send(self, message: ToEngine) -> None:
        if isinstance(message, Abort):
            self._streams.pop(message.sequence, None)
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    def _lose(self, reason: str) -> None:
        """The engine is gone: everything open fails now."""
        self._up.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(EngineRestarting(reason, retry_after=5))
        for verdict in self._trials.values():
            if not verdict.done():
                verdict.set_exception(EngineRestarting(reason, retry_after=5))

    async def _reap(self, seconds: float) -> int | None:
        """Let the child end by itself (its stream is closed), then make sure. Returns its exit status."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            return await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.wait()


def _cause(status: int | None) -> str:
    """Return what an exit status says; a negative one is the signal that ended the process."""
    if status is None or status >= 0:
        return f"exit status {status}"
    return signal.strsignal(-status) or f"signal {-status}"


async def _read_message(reader: asyncio.StreamReader) -> object:
    (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    if size > MAX_FRAME:
        raise OSError(f"a frame of {size} bytes: the stream is broken")
    return decode(await reader.readexactly(size))
