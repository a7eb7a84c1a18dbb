"""`POST /v1/generate`, whole or streamed."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from server.api.auth import CurrentTenant, protected_router
from server.api.body import read_json
from server.api.client import unless_gone
from server.api.openapi import GENERATING, error_replies, event_stream, json_body
from server.api.record import record_of
from server.api.replies import GenerateReply, ReplyWriter
from server.api.schemas import GenerateRequest
from server.api.streaming import answer
from server.service.generation import GenerationService
from server.service.run import Run

MAX_BODY = 8 * 2**20
"""Bytes of a generate request's body."""

EVENTS = event_stream("An event as JSON, an error, or `[DONE]` at the end.")

router = protected_router("/v1")


@router.post(
    "/generate",
    response_model=None,
    responses={200: {"model": GenerateReply, "content": EVENTS}, **error_replies(GENERATING)},
    openapi_extra=json_body(GenerateRequest),
)
async def generate(request: Request, tenant: CurrentTenant) -> Response:
    """Generate text from a prompt, with the base model or one of your adapters."""
    body = await read_json(request, GenerateRequest, MAX_BODY)
    service: GenerationService = request.app.state.generation
    run = await unless_gone(request.receive, service.open(tenant, body.command()), Run.close)
    writer = ReplyWriter(
        run,
        request_id=record_of(request.scope).request_id,
        model=request.app.state.base.name,
        token_ids=body.return_token_ids,
        logprobs=body.logprobs is not None,
    )
    return await answer(request, run, writer, stream=body.stream)
