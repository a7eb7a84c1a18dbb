"""uvicorn's HTTP connection, ended where its peer stands still."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def connection(idle_timeout: float) -> type[H11Protocol]:
    """Return the connection for peers that may stand still for `idle_timeout` seconds at most.

    It is that of h11, which ends a request's head at 64 KiB; uvicorn's other parser keeps one without limit.
    """

    class Connection(H11Protocol):
        """Ends when a head does not come to its end, or when nobody reads what is to be sent.

        A body that does not come is the app's affair, which can answer.
        """

        _head_limit: asyncio.TimerHandle | None = None
        _read_limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head_limit = self.loop.call_later(idle_timeout, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._head_came()
            elif self._head_limit is None:
                self._head_limit = self.loop.call_later(idle_timeout, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_reader()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._reader_came()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._head_came()
            self._reader_came()

        def _head_came(self) -> None:
            if self._head_limit is not None:
                self._head_limit.cancel()
                self._head_limit = None

        def _expect_reader(self) -> None:
            unread = self.transport.get_write_buffer_size()
            self._read_limit = self.loop.call_later(idle_timeout, self._judge_reader, unread)

        def _judge_reader(self, unread: int) -> None:
            """Wait longer for one that has taken some of it."""
            if self.transport.get_write_buffer_size() < unread:
                self._expect_reader()
            else:
                self.transport.abort()

        def _reader_came(self) -> None:
            if self._read_limit is not None:
                self._read_limit.cancel()
                self._read_limit = None

    return Connection
