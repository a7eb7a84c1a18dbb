"""An open run as an HTTP answer: whole, or as server-sent events. What the words are is the writer's affair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from server.api.client import ClientGone, unless_gone
from server.api.record import CLIENT_GONE, PLAIN_SEND, RequestRecord, record_of
from server.api.replies import large_reply
from server.errors import WaybillError
from server.service.exchange import Delta
from server.service.run import Run

MANY_SCORES = 256
"""Tokens that are told with their log-probabilities: a reply with more is written beside the event loop."""

DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """Writes one run in the words of one API."""

    ends_with_done: bool
    """Whether a stream's last event is `[DONE]`."""

    def whole(self) -> Any:
        """Return the unstreamed reply, as what JSON can say; the run has finished."""
        ...

    def headers(self) -> dict[str, str]:
        """Return the headers besides the common ones; a stream's are asked for at its first token."""
        ...

    def frames(self, deltas: list[Delta]) -> Iterable[str]:
        """Return the events that tell these deltas, each as JSON."""
        ...

    def last_frames(self) -> Iterable[str]:
        """Return the events that follow the last delta."""
        ...

    def error_frame(self, error: WaybillError) -> str:
        """Return the event that tells of an error on the way."""
        ...


async def answer(request: Request, run: Run, writer: Writer, *, stream: bool) -> Response:
    """Return the run's answer, and close the run at its end, however that comes.

    An error before the first token is raised, so that it has a status of its own; so is ClientGone.
    """
    record = record_of(request.scope)
    handed_over = False
    try:
        if run.adapter is not None:
            record.adapter, record.digest = run.adapter.name, run.adapter.digest
        if stream:
            await unless_gone(request.receive, run.primed())
            handed_over = True
            return EventStream(run, writer, record)
        await unless_gone(request.receive, run.finished())
        headers = adapter_headers(run) | writer.headers()
        if sum(choice.num_scored for choice in run.choices) > MANY_SCORES:
            return await unless_gone(request.receive, large_reply(writer.whole, headers))
        return JSONResponse(writer.whole(), headers=headers)
    finally:
        if not handed_over:
            _end(run, record)


def adapter_headers(run: Run) -> dict[str, str]:
    """Return the headers that say which version answered."""
    used = run.adapter
    return {} if used is None else {"X-Adapter": f"{used.name}@{used.version}", "X-Adapter-Digest": used.digest}


class EventStream(Response):
    """A primed run as server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, run: Run, writer: Writer, record: RequestRecord) -> None:
        common = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=common | adapter_headers(run) | writer.headers())
        del self.headers["content-length"]
        self._run = run
        self._writer = writer
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the run ends or the client leaves; the run is closed either way."""
        try:
            await unless_gone(receive, self._send(send, scope.get(PLAIN_SEND, send)))
        except (ClientGone, OSError):
            self._record.status = CLIENT_GONE
        finally:
            _end(self._run, self._record)

    async def _send(self, start: Send, send: Send) -> None:
        """Send the head through the middleware, and the many events behind it directly."""
        await start({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            while deltas := await self._run.deltas():
                await _send_events(send, self._writer.frames(deltas))
            await _send_events(send, self._writer.last_frames())
        except WaybillError as error:
            self._record.error = error.code
            await _send_events(send, (self._writer.error_frame(error),))
        await send(
            {"type": "http.response.body", "body": DONE if self._writer.ends_with_done else b"", "more_body": False}
        )


async def _send_events(send: Send, events: Iterable[str]) -> None:
    """Send them in one piece: a system call costs more than the events in it."""
    body = "".join([f"data: {event}\n\n" for event in events])
    if body:
        await send({"type": "http.response.body", "body": body.encode(), "more_body": True})


def _end(run: Run, record: RequestRecord) -> None:
    run.close()
    usage, timings = run.usage, run.timings
    record.tokens_in, record.tokens_out = usage.prompt_tokens, usage.completion_tokens
    record.queue_ms, record.ttft_ms = timings.queue_ms, timings.ttft_ms
