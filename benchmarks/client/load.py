"""Two ways to offer load: a closed loop of clients that never pause, and an open loop of arrivals at given times."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from benchmarks.client.wire import Connection, ProtocolError, Reply, connect

Outcome = Reply | str
"""A reply, or why there is none."""


async def closed_loop(host: str, port: int, clients: int, requests: Sequence[bytes]) -> list[Outcome]:
    """Let `clients` work through `requests`, each asking for the next as soon as it has its answer."""
    connections = [await connect(host, port) for _ in range(clients)]
    waiting = deque(range(len(requests)))
    outcomes: list[Outcome] = [""] * len(requests)

    async def work(connection: Connection) -> None:
        while waiting:
            number = waiting.popleft()
            outcomes[number] = await _ask(connection, requests[number])
            if not connection.reusable and waiting:
                connection = await connect(host, port)
        connection.close()

    await asyncio.gather(*(work(connection) for connection in connections))
    return outcomes


async def open_loop(host: str, port: int, times: Sequence[float], requests: Sequence[bytes]) -> list[Outcome]:
    """Send request *i* `times[i]` seconds after the start, whatever became of those before it.

    A reply counts as sent when it was due, so a client that falls behind makes no server look faster.
    """
    idle: list[Connection] = []
    start = perf_counter()

    async def one(at: float, request: bytes) -> Outcome:
        await asyncio.sleep(start + at - perf_counter())
        connection = idle.pop() if idle else await connect(host, port)
        outcome = await _ask(connection, request)
        if isinstance(outcome, Reply):
            outcome.sent = start + at
        if connection.reusable:
            idle.append(connection)
        return outcome

    outcomes = await asyncio.gather(*(one(at, request) for at, request in zip(times, requests, strict=True)))
    for connection in idle:
        connection.close()
    return list(outcomes)


async def _ask(connection: Connection, request: bytes) -> Outcome:
    try:
        return await connection.ask(request)
    except ProtocolError as error:
        return str(error)
