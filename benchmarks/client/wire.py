"""One kept-alive HTTP/1.1 connection that sends a request and notes when each piece of the streamed reply arrived.

Nothing is parsed while a reply comes in except HTTP itself: pieces are kept with their times and read afterwards.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast


class ProtocolError(Exception):
    """The server sent something that is not HTTP/1.1, or closed the connection in the middle of a reply."""


@dataclass(slots=True)
class Reply:
    """A reply as it came: seconds of `perf_counter`, and the body's pieces with the time of each."""

    sent: float
    status: int = 0
    arrivals: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class Connection(asyncio.Protocol):
    """Asks one request at a time: `reply = await connection.ask(request)`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._reply: Reply | None = None
        self._done: asyncio.Future[Reply] | None = None
        self._in_head = True
        self._chunked = False
        self._left = 0  # bytes of the current chunk or body that are still to come
        self.reusable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._fail(ProtocolError(f"the server closed the connection{f': {exc}' if exc else ''}"))

    def ask(self, request: bytes) -> asyncio.Future[Reply]:
        """Send a whole request, head and body. The future raises ProtocolError."""
        assert self._transport is not None, "not connected"
        assert self._done is None, "one request at a time"
        done = self._done = asyncio.get_running_loop().create_future()
        self._in_head, self._buffer = True, b""
        self._reply = Reply(perf_counter())
        if self.reusable:
            self._transport.write(request)
        else:
            self._fail(ProtocolError("the connection is closed"))
        return done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if self._reply is None:
            return
        self._buffer = self._buffer + data if self._buffer else data
        try:
            if self._in_head and not self._read_head():
                return
            finished = self._read_chunks(now) if self._chunked else self._read_plain(now)
        except (ValueError, IndexError) as error:
            self.reusable = False
            self._fail(ProtocolError(f"not HTTP/1.1: {error}"))
            return
        if finished:
            self._finish()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        assert self._reply is not None
        self._reply.status = int(first.split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._left = 0 if self._chunked else int(headers.get("content-length", "0"))
        if headers.get("connection", "").lower() == "close":
            self.reusable = False
        self._buffer = self._buffer[end + 4 :]
        self._in_head = False
        return True

    def _read_plain(self, now: float) -> bool:
        if self._buffer:
            self._note(now, self._buffer[: self._left])
            self._left -= len(self._buffer)
            self._buffer = b""
        return self._left <= 0

    def _read_chunks(self, now: float) -> bool:
        """Take what has come of the chunks; return whether the last one was among it."""
        buffer, place = self._buffer, 0
        while True:
            end = buffer.find(b"\r\n", place)
            if end < 0:
                break
            size = int(buffer[place:end], 16)
            start = end + 2
            if len(buffer) < start + size + 2:
                break
            if size == 0:
                return True
            self._note(now, buffer[start : start + size])
            place = start + size + 2
        self._buffer = buffer[place:]
        return False

    def _note(self, now: float, piece: bytes) -> None:
        assert self._reply is not None
        self._reply.arrivals.append(now)
        self._reply.pieces.append(piece)

    def _finish(self) -> None:
        done, reply = self._done, self._reply
        self._done = self._reply = None
        if done is not None and not done.done():
            assert reply is not None
            done.set_result(reply)

    def _fail(self, error: ProtocolError) -> None:
        done = self._done
        self._done = self._reply = None
        if done is not None and not done.done():
            done.set_exception(error)


async def connect(host: str, port: int) -> Connection:
    """Open one connection."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection


def request_bytes(host: str, port: int, path: str, body: bytes) -> bytes:
    """Return a whole POST of JSON, kept alive."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
