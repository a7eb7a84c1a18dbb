"""One open generate call: its choices, its deadline, and the one place where it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from server.core import FinishReason
from server.errors import DeadlineReached, WaybillError
from server.service.choice import Choice
from server.service.exchange import AdapterUsed, Delta, Timings, Usage


class Run:
    """The answer of one call while it is being made.

    Await `primed` for the first token, then either `finished` or `deltas` until it is empty; `close` always. Each
    raises the first error of any of its sequences, and DeadlineReached where the time ran out before `primed`.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        adapter: AdapterUsed | None,
        seed: int,
        usage: Callable[[int], Usage],
        arrived: float,
        deadline: float | None,
        details: bool,
        on_close: Callable[[Run], None],
    ) -> None:
        self.choices = choices
        self.adapter = adapter
        self.seed = seed
        self.created = int(time.time())
        self._usage = usage
        self._arrived = arrived
        self._details = details
        self._on_close = on_close
        self._first_token: float | None = None
        self._ended: float | None = None
        self._error: WaybillError | None = None
        self._expired = False
        self._closed = False
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        for choice in choices:
            choice.read(self._wake, partial(self._ended_one, choice))
        if deadline is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self._usage(sum(len(choice.token_ids) for choice in self.choices))

    @property
    def timings(self) -> Timings:
        """Milliseconds so far; the waits are those of the sequence that waited longest."""
        started = [choice.started for choice in self.choices if choice.started is not None]
        end = time.monotonic() if self._ended is None else self._ended
        first = end if self._first_token is None else self._first_token
        return Timings(
            queue_ms=max((s.queue_ms for s in started), default=0.0),
            load_ms=max((s.load_ms for s in started), default=0.0),
            ttft_ms=(first - self._arrived) * 1000,
            total_ms=(end - self._arrived) * 1000,
        )

    @property
    def error(self) -> WaybillError | None:
        """What ended it, None where nothing did."""
        return self._error

    async def primed(self) -> None:
        """Return when the first token of any choice is there."""
        while self._first_token is None and not self._done:
            await self._change()
        if self._first_token is not None:
            return
        self._check()
        if self._expired:
            raise DeadlineReached("timeout_s passed before the first token")

    async def finished(self) -> None:
        """Return when every choice is finished. Raises DeadlineReached where time ran out on any."""
        while not self._done:
            self._settled.clear()
            await self._settled.wait()
        self._check()
        if self._expired:
            raise DeadlineReached("timeout_s passed before the answer was complete")

    async def deltas(self) -> list[Delta]:
        """Return what is new, at least one delta; an empty list once all is told."""
        while True:
            fresh = [d for choice in self.choices if (d := choice.take(details=self._details)) is not None]
            if fresh:
                return fresh
            self._check()
            if self._done:
                return []
            await self._change()

    def fail(self, error: WaybillError) -> None:
        """End every choice with this error."""
        self._error = self._error or error
        for choice in self.choices:
            choice.abort()
        self._settle()

    def close(self) -> None:
        """Abort what still runs and give everything back. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._ended is None:
            self._ended = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        for choice in self.choices:
            choice.abort()
        self._on_close(self)

    @property
    def _done(self) -> bool:
        return self._error is not None or all(choice.finish for choice in self.choices)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _ended_one(self, choice: Choice, error: WaybillError | None) -> None:
        """A choice's stream is at its end."""
        if error is not None and choice.finish is None:
            self.fail(error)
        elif not self._closed and self._error is None:
            choice.end(FinishReason.ABORT)
            self._settle()

    def _wake(self) -> None:
        if self._first_token is None:
            self._first_token = time.monotonic()
        self._changed.set()

    def _expire(self) -> None:
        self._expired = not self._done
        for choice in self.choices:
            choice.end(FinishReason.TIMEOUT)
        self._settle()

    def _settle(self) -> None:
        """Something ended; note when all has."""
        if self._done and self._ended is None:
            self._ended = time.monotonic()
        self._changed.set()
        self._settled.set()
