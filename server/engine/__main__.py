"""`python -m server.engine FD`: the engine process. It lives as long as the stream on that file descriptor."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

# OpenMP threads that spin between steps would take the API process's core; this must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from server import logs
from server.engine.loading import Refusal, build_engine
from server.engine.loop import Engine
from server.engine.messages import HEADER, Configure, FromEngine, Message, Refused, decode, encode


def main() -> int:
    """Serve until the other end of the stream closes. Returns the exit status."""
    logs.configure()
    stream = socket.socket(fileno=int(sys.argv[1]))
    first = _receive(stream)
    if not isinstance(first, Configure):
        return 0 if first is None else 2
    try:
        engine, hello = build_engine(first.config)
    except Refusal as error:
        _send(stream, Refused(str(error)))
        return 1
    threading.Thread(target=_feed, args=(stream, engine), name="inbox", daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the API process is gone: nothing left to do
        _send(stream, hello)
        for report in engine.step():  # fresh gauges: those of an engine that died must not stand
            _send(stream, report)
        engine.run(lambda message: _send(stream, message))
    return 0


def _feed(stream: socket.socket, engine: Engine) -> None:
    """Put what arrives into the engine's inbox; None when nothing more can come."""
    while True:
        message = _receive(stream)
        engine.inbox.put(message)  # type: ignore[arg-type]
        if message is None:
            return


def _receive(stream: socket.socket) -> Message | None:
    """Return the next message, None at the end of the stream."""
    header = _read(stream, HEADER.size)
    body = None if header is None else _read(stream, HEADER.unpack(header)[0])
    return None if body is None else decode(body)


def _read(stream: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        try:
            part = stream.recv(min(size - len(data), 2**20))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)


def _send(stream: socket.socket, message: FromEngine) -> None:
    stream.sendall(encode(message))


if __name__ == "__main__":
    sys.exit(main())
