"""Who may come in: counts open sequences, turns work away when the queue is full or the server is draining."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Draining, InvalidRequest, Overloaded


class Gate:
    """The door of the service. Everything that takes engine time holds a place while it runs.

    `limit` is in sequences: those the engine runs at once and those that may wait behind them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def limit(self) -> int:
        """Places in all."""
        return self._limit

    @property
    def open(self) -> int:
        """Places taken."""
        return self._open

    @property
    def draining(self) -> bool:
        """Whether new work is turned away for good."""
        return self._draining

    def drain(self) -> None:
        """Let nobody in from now on."""
        self._draining = True

    async def idle(self) -> None:
        """Return once no place is taken."""
        await self._idle.wait()

    @contextmanager
    def place(self, count: int = 1) -> Iterator[None]:
        """Hold `count` places. Raises Draining, or Overloaded when there are not as many."""
        self.enter(count)
        try:
            yield
        finally:
            self.leave(count)

    def enter(self, count: int) -> None:
        """Take `count` places; `leave` gives them back. Raises as `place` does."""
        if self._draining:
            raise Draining("the server is shutting down", retry_after=5)
        if count > self._limit:
            raise InvalidRequest(f"{count} sequences at once; this server takes at most {self._limit}")
        if self._open + count > self._limit:
            raise Overloaded(f"the queue is full ({self._limit} sequences)", retry_after=1)
        self._open += count
        self._idle.clear()

    def leave(self, count: int) -> None:
        """Give `count` places back."""
        self._open -= count
        if self._open == 0:
            self._idle.set()
