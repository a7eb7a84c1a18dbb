"""`POST /v1/generate`, whole or streamed."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from server.api.auth import CurrentTenant, protected_router
from server.api.body import read_json
from server.api.client import ClientGone, unless_gone
from server.api.errors import error_body
from server.api.openapi import json_body
from server.api.record import CLIENT_GONE, PLAIN_SEND, RequestRecord, record_of
from server.api.replies import GenerateReply, ReplyWriter, write_json
from server.api.schemas import GenerateRequest
from server.errors import WaybillError
from server.service.generation import GenerationService
from server.service.run import Run

MAX_BODY = 8 * 2**20
"""Bytes of a generate request's body."""

router = protected_router()


@router.post(
    "/generate",
    response_model=None,
    responses={200: {"model": GenerateReply}},
    openapi_extra=json_body(GenerateRequest),
)
async def generate(request: Request, tenant: CurrentTenant) -> Response:
    """Generate text from a prompt, with the base model or one of your adapters."""
    body = await read_json(request, GenerateRequest, MAX_BODY)
    service: GenerationService = request.app.state.generation
    record = record_of(request.scope)
    run = await unless_gone(request.receive, service.open(tenant, body.command()), Run.close)
    handed_over = False
    try:
        if run.adapter is not None:
            record.adapter, record.digest = run.adapter.name, run.adapter.digest
        writer = ReplyWriter(
            run,
            request_id=record.request_id,
            model=request.app.state.base.name,
            token_ids=body.return_token_ids,
            logprobs=body.logprobs is not None,
        )
        if body.stream:
            await unless_gone(request.receive, run.primed())
            handed_over = True
            return EventStream(run, writer, record)
        await unless_gone(request.receive, run.finished())
        return JSONResponse(writer.whole())
    finally:
        if not handed_over:
            _end(run, record)


class EventStream(Response):
    """A primed run as server-sent events: deltas, then usage, then `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(self, run: Run, writer: ReplyWriter, record: RequestRecord) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
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
                await _send_event(send, self._writer.frame(deltas))
            await _send_event(send, write_json(self._writer.last_frame()))
        except WaybillError as error:
            self._record.error = error.code
            await _send_event(send, write_json(error_body(error)))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def _end(run: Run, record: RequestRecord) -> None:
    run.close()
    usage, timings = run.usage, run.timings
    record.tokens_in, record.tokens_out = usage.prompt_tokens, usage.completion_tokens
    record.queue_ms, record.ttft_ms = timings.queue_ms, timings.ttft_ms
