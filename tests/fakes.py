"""A deterministic engine in this process: for tests of everything above the seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from server.core import (
    AdapterSource,
    FinishReason,
    Parity,
    PrefixKey,
    PromptScores,
    SamplingParams,
    Scoring,
    TokenEvent,
)
from server.engine.messages import Hello, Moved, Started, StepReport, StepStats
from server.errors import AdapterRejected, EngineFault, EngineRestarting, WaybillError

HELLO = Hello(
    max_model_len=1024,
    num_blocks=64,
    block_size=64,
    prefix_blocks=32,
    dtype="float32",
    device="cpu",
    attention="reference",
)

NextToken = Callable[[Sequence[int], int, SamplingParams], int]
"""From all tokens so far (virtual rows included) and how many of them are output, to the next."""


def letters(tokens: Sequence[int], index: int, params: SamplingParams) -> int:
    """A token that depends on every token before it and on the seed, within the ids of the 26 small letters."""
    state = params.seed % 9973 if params.temperature else 1
    for token in tokens:
        state = (state * 31 + token + 7) % 9973
    return ord("a") + state % 26


def saying(*tokens: int) -> NextToken:
    """An engine that says these tokens over and over, whatever the prompt."""
    return lambda history, index, params: tokens[index % len(tokens)]


@dataclass(eq=False)
class FakeStream:
    """One sequence of the fake."""

    number: int
    tokens: tuple[int, ...]
    params: SamplingParams
    adapter: AdapterSource | None
    salt: str | None = None
    scoring: Scoring | None = None
    started: Started | None = None
    scores: list[PromptScores] = field(default_factory=list)
    found: int = 0
    ended: bool = False
    inbox: asyncio.Queue[TokenEvent | WaybillError | None] = field(default_factory=asyncio.Queue)
    output: list[int] = field(default_factory=list)
    says: bytes = b""  # instead of the engine's next token, over and over
    take: Callable[[TokenEvent], None] | None = None
    end: Callable[[WaybillError | None], None] | None = None

    def put(self, item: TokenEvent | WaybillError | None) -> None:
        """Deliver an event, or the end: an error, or None for an abort."""
        if self.take is None or self.end is None:
            self.inbox.put_nowait(item)
        elif isinstance(item, TokenEvent):
            self.take(item)
            if item.finish is not None:
                self.end(None)
        else:
            self.end(item)

    def listen(self, take: Callable[[TokenEvent], None], end: Callable[[WaybillError | None], None]) -> None:
        self.take, self.end = take, end
        while not self.inbox.empty():
            self.put(self.inbox.get_nowait())

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while True:
            item = await self.inbox.get()
            if item is None:
                return
            if isinstance(item, WaybillError):
                raise item
            yield item
            if item.finish is not None:
                return

    def abort(self) -> None:
        if not self.ended:
            self.ended = True
            self.put(None)


class FakeEngine:
    """An `EngineClient` without an engine: one step of every open sequence per turn of the event loop.

    `step_seconds` slows it down. `pause()` holds its steps until `resume()`. `die()` and `revive()` play a crash.
    Sequences with a number in `waits` never get their turn. What it was asked stands in `submitted`, `checked`,
    `verified` and `forgotten`; every verification finds `parity`. It counts as found all tokens but the last of a
    prompt that it was sent before, with the same salt and adapter.
    """

    def __init__(
        self,
        *,
        hello: Hello = HELLO,
        next_token: NextToken = letters,
        eos: frozenset[int] = frozenset(),
        step_seconds: float = 0.0,
    ) -> None:
        self._hello = hello
        self._next_token = next_token
        self._eos = eos
        self._step_seconds = step_seconds
        self._going = asyncio.Event()
        self._going.set()
        self._up = asyncio.Event()
        self._listeners: list[Callable[[StepReport], None]] = []
        self._mourners: list[Callable[[], None]] = []
        self._looping: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._known: set[tuple[tuple[int, ...], AdapterSource | None, str]] = set()
        self._asked_tokens = 0
        self._cached_tokens = 0
        self.submitted: list[FakeStream] = []
        self.checked: list[AdapterSource] = []
        self.verified: list[tuple[tuple[int, ...], int, AdapterSource]] = []
        self.parity = Parity(9, 9, largest=2e-5, deviation=3.0, error=2e-5, allowed=3e-4)
        self.forgotten: list[str] = []
        self.pinned: set[str] = set()
        self._resident: set[PrefixKey] = set()
        self._moved: list[Moved] = []
        self.rejects: str = ""
        self.fail_after: int | None = None
        self.waits: frozenset[int] = frozenset()

    @property
    def ready(self) -> bool:
        return self._up.is_set()

    @property
    def hello(self) -> Hello:
        return self._hello

    @property
    def running(self) -> list[FakeStream]:
        """Sequences that hold memory now."""
        return [stream for stream in self.submitted if not stream.ended]

    async def start(self) -> None:
        self._up.set()
        self._looping = asyncio.create_task(self._loop())

    async def wait_ready(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._up.wait(), seconds)
        except TimeoutError:
            raise EngineRestarting("the engine is being restarted", retry_after=5) from None

    async def close(self) -> None:
        self._lose()
        if self._looping is not None:
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
        if not self.ready:
            raise EngineRestarting("the engine is being restarted", retry_after=5)
        stream = FakeStream(len(self.submitted), tokens, params, adapter, salt, scoring)
        if salt is not None:
            self._asked_tokens += len(tokens)
            stream.found = (len(tokens) - 1) * ((tokens, adapter, salt) in self._known)
            self._cached_tokens += stream.found
            self._known.add((tokens, adapter, salt))
        self.submitted.append(stream)
        self._work.set()
        return stream

    async def check(self, adapter: AdapterSource) -> None:
        self.checked.append(adapter)
        if self.rejects:
            raise AdapterRejected(self.rejects)

    async def verify(self, tokens: tuple[int, ...], max_tokens: int, adapter: AdapterSource) -> Parity:
        self.verified.append((tokens, max_tokens, adapter))
        await self._going.wait()
        if self.rejects:
            raise AdapterRejected(self.rejects)
        return self.parity

    def forget(self, digest: str) -> None:
        self.forgotten.append(digest)
        for key in [key for key in self._resident if key.adapter == digest]:
            self._resident.discard(key)
            self._moved.append(Moved(key, False))
        self._work.set()

    def pin(self, digest: str, pinned: bool) -> None:
        if pinned:
            self.pinned.add(digest)
        else:
            self.pinned.discard(digest)

    def on_report(self, listener: Callable[[StepReport], None]) -> None:
        self._listeners.append(listener)

    def on_death(self, listener: Callable[[], None]) -> None:
        self._mourners.append(listener)

    def pause(self) -> None:
        """Make no token until `resume`."""
        self._going.clear()

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    def die(self) -> None:
        """Every open sequence fails, and the engine is down."""
        self._lose()
        for listener in self._mourners:
            listener()

    def _lose(self) -> None:
        self._up.clear()
        self._resident.clear()
        self.pinned.clear()
        for stream in self.running:
            stream.ended = True
            stream.put(EngineRestarting("the engine process died; it is being restarted"))

    def revive(self) -> None:
        """The engine is up again."""
        self._up.set()

    async def _loop(self) -> None:
        while True:
            await self._going.wait()
            if not self.running and not self._moved:
                self._work.clear()
                await self._work.wait()
                continue
            self._step()
            await asyncio.sleep(self._step_seconds)

    def _step(self) -> None:
        batch = [stream for stream in self.running if stream.number not in self.waits]
        events = tuple(event for stream in batch if (event := self._advance(stream)) is not None)
        for stream in batch:
            if stream.adapter is not None and stream.adapter.key not in self._resident:
                self._resident.add(stream.adapter.key)
                self._moved.append(Moved(stream.adapter.key, True))
        moved, self._moved = tuple(self._moved), []
        report = StepReport(events=events, moved=moved, stats=self._stats(batch))
        for listener in self._listeners:
            listener(report)

    def _advance(self, stream: FakeStream) -> TokenEvent | None:
        if stream.started is None:
            stream.started = Started(stream.number, queue_ms=1.0, load_ms=0.5, cached_tokens=stream.found)
            if stream.scoring is not None:
                stream.scores.append(_scored(stream, stream.scoring))
        if self.fail_after is not None and len(stream.output) >= self.fail_after:
            stream.ended = True
            stream.put(EngineFault("the engine failed on this request"))
            return None
        if not stream.params.max_tokens:
            stream.ended = True
            event = TokenEvent(stream.number, -1, FinishReason.LENGTH)
            stream.put(event)
            return event
        token = self._draw(stream)
        stream.output.append(token)
        event = self._event(stream, token)
        stream.ended = event.finish is not None
        stream.put(event)
        return event

    def _draw(self, stream: FakeStream) -> int:
        if stream.says:
            return stream.says[len(stream.output) % len(stream.says)]
        prefix = stream.adapter.prefix_ids if stream.adapter is not None else ()
        return self._next_token((*prefix, *stream.tokens, *stream.output), len(stream.output), stream.params)

    def _event(self, stream: FakeStream, token: int) -> TokenEvent:
        params, count = stream.params, len(stream.output)
        finish = FinishReason.LENGTH if count >= params.max_tokens else None
        ends = token in params.stop_token_ids or (token in self._eos and not params.ignore_eos)
        if ends and count > params.min_tokens:
            finish = FinishReason.STOP
        if params.logprobs is None:
            return TokenEvent(stream.number, token, finish)
        top = tuple((token + i, -0.5 - i) for i in range(params.logprobs))
        return TokenEvent(stream.number, token, finish, -0.5, top)

    def _stats(self, batch: list[FakeStream]) -> StepStats:
        kinds = {None if s.adapter is None else s.adapter.kind for s in batch}
        adapters = {s.adapter.key.adapter for s in batch if s.adapter is not None}
        return StepStats(
            running=len(batch),
            waiting=0,
            batch_sequences=len(batch),
            batch_tokens=len(batch),
            batch_adapters=len(adapters),
            batch_kinds=len(kinds),
            blocks_used=len(batch),
            blocks_total=self._hello.num_blocks,
            prefix_blocks_used=len(adapters),
            resident_adapters=len(adapters),
            cold_loads=len(adapters),
            preemptions=0,
            asked_tokens=self._asked_tokens,
            cached_tokens=self._cached_tokens,
            step_ms=1.0,
        )


def fake_logprob(token: int, before: Sequence[int]) -> float:
    """What the fake engine says of a token after these: a number that depends on all of them."""
    return -1.0 - (sum(before) * 7 + token * 13) % 97 / 97


def _scored(stream: FakeStream, scoring: Scoring) -> PromptScores:
    tokens = stream.tokens
    logprobs = tuple(fake_logprob(tokens[i], tokens[:i]) for i in range(scoring.start, len(tokens)))
    scored = zip(tokens[scoring.start :], logprobs, strict=True)
    tops = tuple(tuple((token + k, p - k) for k in range(scoring.top)) for token, p in scored)
    after = tuple(fake_logprob(token, tokens) for token in scoring.after)
    return PromptScores(stream.number, scoring.start, logprobs, tops if scoring.top else (), after)
