"""`POST /v1/completions` and `POST /v1/chat/completions`, whole or streamed."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request
from starlette.responses import Response

from server.api.auth import CurrentTenant, protected_router
from server.api.body import read_json
from server.api.client import unless_gone
from server.api.generate import EVENTS, MAX_BODY
from server.api.openai.chat import ChatRequest
from server.api.openai.chat_replies import ChatReply, ChatWriter
from server.api.openai.completion_replies import CompletionReply, CompletionWriter
from server.api.openai.completions import CompletionRequest
from server.api.openai.fields import OpenAIFields
from server.api.openai.selection import reraised, select
from server.api.openapi import GENERATING, error_replies, json_body
from server.api.record import record_of
from server.api.streaming import answer
from server.errors import WaybillError
from server.service.exchange import GenerateCommand
from server.service.generation import GenerationService
from server.service.run import Run
from server.service.tenants import Tenant

router = protected_router("/v1")


@router.post(
    "/completions",
    response_model=None,
    responses={200: {"model": CompletionReply, "content": EVENTS}, **error_replies(GENERATING)},
    openapi_extra=json_body(CompletionRequest),
)
async def completions(request: Request, tenant: CurrentTenant) -> Response:
    """Write what follows a prompt."""
    body = await read_json(request, CompletionRequest, MAX_BODY)
    state = request.app.state
    run = await _open(request, tenant, body, body.command)
    request_id, model = record_of(request.scope).request_id, body.model or state.base.name
    writer = CompletionWriter(run, body, state.tokenizer, request_id=request_id, model=model)
    return await answer(request, run, writer, stream=body.stream)


@router.post(
    "/chat/completions",
    response_model=None,
    responses={200: {"model": ChatReply, "content": EVENTS}, **error_replies(GENERATING)},
    openapi_extra=json_body(ChatRequest),
)
async def chat_completions(request: Request, tenant: CurrentTenant) -> Response:
    """Write the assistant's next message of a conversation."""
    body = await read_json(request, ChatRequest, MAX_BODY)
    state = request.app.state
    run = await _open(request, tenant, body, body.command, length=body.length_field)
    request_id, model = record_of(request.scope).request_id, body.model or state.base.name
    writer = ChatWriter(run, body, state.tokenizer, request_id=request_id, model=model)
    return await answer(request, run, writer, stream=body.stream)


async def _open(
    request: Request,
    tenant: Tenant,
    body: OpenAIFields,
    command: Callable[[str | None], GenerateCommand],
    length: str = "max_tokens",
) -> Run:
    """Open the run that the body asks for, and let the log line say what the body names.

    Errors speak of the fields that were sent: `length` is the one that says how long the text may be.
    """
    state, record = request.app.state, record_of(request.scope)
    record.user = body.user or ""
    record.request_id = body.request_id or record.request_id
    selection = await select(state.adapters, tenant, state.base.name, model=body.model, adapter=body.adapter)
    service: GenerationService = state.generation
    try:
        return await unless_gone(request.receive, service.open(tenant, command(selection.adapter)), Run.close)
    except WaybillError as error:
        error.param = length if error.param == "max_tokens" else error.param
        raise reraised(error, selection.model) from None
