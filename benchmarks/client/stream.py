"""What a streamed reply said: how many tokens, and when the client could read them.

Servers may put several tokens into one event and several events into one piece, so tokens are counted by the reply's
own `usage`, and times are those at which new text arrived.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.client.wire import Reply

_DATA = b"data: "


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome. Times are seconds since it was sent, in order; `failure` is the reason where it failed."""

    tokens: int
    arrivals: tuple[float, ...]
    text: str
    failure: str | None = None

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between arrivals of new text."""
        return [later - sooner for sooner, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


def read_answer(reply: Reply) -> Answer:
    """Read a server's events, ours or those of OpenAI's completions. Never raises: what cannot be read is a failure."""
    if reply.status != 200:
        return _failed(f"status {reply.status}: {reply.body[:300].decode(errors='replace')}")
    tokens = 0
    arrivals: list[float] = []
    texts: list[str] = []
    for at, event in _events(reply):
        try:
            said = json.loads(event)
        except ValueError:
            return _failed(f"an event is not JSON: {event[:100]!r}")
        if "error" in said:
            return _failed(f"error: {said['error']}")
        if said.get("choices"):
            texts.append(said["choices"][0].get("text") or "")
            if not arrivals or at > arrivals[-1]:
                arrivals.append(at)
        tokens = _tokens(said, tokens)
    if not arrivals or not tokens:
        return _failed("the stream ended without tokens or without a count of them")
    return Answer(tokens, tuple(at - reply.sent for at in arrivals), "".join(texts))


def _events(reply: Reply) -> list[tuple[float, bytes]]:
    """Return the events' data, each with the arrival of its last byte."""
    found, rest = [], b""
    for at, piece in zip(reply.arrivals, reply.pieces, strict=True):
        *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            data = event[len(_DATA) :] if event.startswith(_DATA) else b""
            if data and data != b"[DONE]":
                found.append((at, data))
    return found


def _tokens(said: dict[str, Any], before: int) -> int:
    usage = said.get("usage") or {}
    return int(usage.get("completion_tokens", before))


def _failed(reason: str) -> Answer:
    return Answer(0, (), "", reason)
