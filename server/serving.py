"""Runs the app under uvicorn, and drains it on SIGTERM: ready turns 503, what runs finishes, exit 0."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.connections import connection
from server.errors import Draining
from server.service.admission import Gate
from server.service.generation import GenerationService

logger = logging.getLogger(__name__)

GRACE = 5
"""Seconds for connections to close once everything has been answered."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not yet listening. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    bound.set_inheritable(False)
    return bound


class DrainingServer(uvicorn.Server):
    """uvicorn closes its listener at once on a signal; this one goes on answering while work is left.

    The first signal starts the drain, which ends when nothing runs any more or after `shutdown_timeout` seconds;
    a second one ends it at once.
    """

    def __init__(self, app: FastAPI, shutdown_timeout: float) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            http=connection(app.state.idle_timeout),
            timeout_graceful_shutdown=GRACE,
            # Longer than clients keep a connection for reuse, five seconds for many: where both end it at one moment, a
            # request that is just being sent is lost.
            timeout_keep_alive=max(5, int(app.state.idle_timeout)),
            # A proxy's word on who the client is changes nothing here.
            proxy_headers=False,
        )
        super().__init__(config)
        self._gate: Gate = app.state.gate
        self._generation: GenerationService = app.state.generation
        self._shutdown_timeout = shutdown_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, then listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain. uvicorn is not told of the signal, which it would end the process with."""
        self._signals += 1
        if self._signals > 1 or not self.started or self._loop is None:
            self.should_exit = True
            self.force_exit = self._signals > 2
        else:
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._gate.drain()
        logger.info("draining: %d sequences are open", self._gate.open)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._gate.idle(), self._shutdown_timeout)
        except TimeoutError:
            late = Draining("the server shut down before the answer was complete", retry_after=5)
            self._generation.fail_all(late)
        self.should_exit = True
