"""`python -m benchmarks.null.engine FD`: speaks as the engine process does, a token a step for each sequence.

Each step takes as long as a small model's, so that messages are as large and as many as in earnest; the processor
time that is measured does not depend on it.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys

from server.core import EngineConfig, FinishReason, TokenEvent
from server.engine.messages import (
    HEADER,
    Abort,
    Configure,
    Hello,
    Message,
    Started,
    StepReport,
    StepStats,
    Submit,
    decode,
    encode,
)

STEP_SECONDS = 0.03
FIRST_TOKEN = 1000
"""Ids below are special tokens and single bytes in the models that are measured."""

BLOCK_SIZE = 32


class NullEngine:
    """Sequences and how many tokens each still gets."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._left: dict[int, int] = {}
        self._fresh: list[int] = []
        self._tokens = itertools.cycle(range(FIRST_TOKEN, config.base.vocab_size))
        self.waiting = asyncio.Event()

    def hello(self) -> Hello:
        blocks = self._config.kv_memory // 2**20
        return Hello(self._config.max_model_len, blocks, BLOCK_SIZE, blocks, self._config.dtype, "cpu", "null")

    def take(self, message: Message) -> None:
        """Begin or end a sequence. Raises ValueError for what only a real engine can answer."""
        if isinstance(message, Submit) and message.scoring is None:
            self._left[message.sequence] = message.params.max_tokens
            self._fresh.append(message.sequence)
            self.waiting.set()
        elif isinstance(message, Abort):
            self._left.pop(message.sequence, None)
        else:
            raise ValueError(f"the null engine has no answer to {type(message).__name__}")

    def step(self) -> StepReport:
        """Give every sequence its next token."""
        events = []
        for sequence, left in list(self._left.items()):
            finish = FinishReason.LENGTH if left == 1 else None
            events.append(TokenEvent(sequence, next(self._tokens), finish))
            self._left[sequence] = left - 1
            if finish:
                del self._left[sequence]
        started = tuple(Started(sequence, 0.1, 0.0) for sequence in self._fresh)
        self._fresh = []
        if not self._left:
            self.waiting.clear()
        return StepReport(tuple(events), started=started, stats=self._stats(len(events)))

    def _stats(self, batch: int) -> StepStats:
        return StepStats(
            running=len(self._left),
            waiting=0,
            batch_sequences=batch,
            batch_tokens=batch,
            batch_adapters=0,
            batch_kinds=1,
            blocks_used=0,
            blocks_total=self.hello().num_blocks,
            prefix_blocks_used=0,
            resident_adapters=0,
            cold_loads=0,
            preemptions=0,
            asked_tokens=0,
            cached_tokens=0,
            step_ms=STEP_SECONDS * 1000,
        )


async def serve(stream: socket.socket) -> None:
    """Answer until the other end closes."""
    reader, writer = await asyncio.open_connection(sock=stream)
    first = await _read(reader)
    if not isinstance(first, Configure):
        return
    engine = NullEngine(first.config)
    writer.write(encode(engine.hello()))
    stepping = asyncio.create_task(_run(engine, writer))
    try:
        while (message := await _read(reader)) is not None:
            engine.take(message)
    finally:
        stepping.cancel()


async def _run(engine: NullEngine, writer: asyncio.StreamWriter) -> None:
    while True:
        await engine.waiting.wait()
        await asyncio.sleep(STEP_SECONDS)
        writer.write(encode(engine.step()))


async def _read(reader: asyncio.StreamReader) -> Message | None:
    """Return the next message, None at the end of the stream."""
    try:
        (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
        return decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
