"""`POST /`, `/generate` and `/generate_stream`, as TGI and LoRAX have them."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from server.api.auth import CurrentTenant, protected_router
from server.api.body import read_json
from server.api.client import unless_gone
from server.api.generate import MAX_BODY
from server.api.openapi import event_stream, json_body
from server.api.streaming import answer
from server.api.tgi.replies import TgiEvent, TgiReply
from server.api.tgi.schemas import TgiRequest
from server.api.tgi.words import TgiError, TgiRoute, tgi_replies
from server.api.tgi.writer import TgiWriter
from server.errors import InvalidRequest
from server.service.generation import GenerationService
from server.service.run import Run
from server.service.tenants import Tenant

_ERRORS = tgi_replies(401, 404, 408, 413, 415, 422, 424, 429, 500)
_BODY = json_body(TgiRequest)
_EVENTS = event_stream("A token, or an error.", TgiEvent, TgiError)

router = protected_router(route_class=TgiRoute)


@router.post(
    "/",
    response_model=None,
    responses={200: {"model": list[TgiReply], "content": _EVENTS}, **_ERRORS},
    openapi_extra=_BODY,
)
async def generate_listed(request: Request, tenant: CurrentTenant) -> Response:
    """Generate text: a list with one reply, or with `stream` events."""
    body = await read_json(request, TgiRequest, MAX_BODY)
    return await _answer(request, tenant, body, listed=True, stream=bool(body.stream))


@router.post(
    "/generate",
    response_model=None,
    responses={200: {"model": TgiReply}, **_ERRORS},
    openapi_extra=_BODY,
)
async def generate_whole(request: Request, tenant: CurrentTenant) -> Response:
    """Generate text, in one reply."""
    body = await read_json(request, TgiRequest, MAX_BODY)
    if body.stream:
        raise InvalidRequest("stream: this route answers in one piece; use /generate_stream", param="stream")
    return await _answer(request, tenant, body, listed=False, stream=False)


@router.post(
    "/generate_stream",
    response_model=None,
    responses={200: {"content": _EVENTS, "description": "Events"}, **_ERRORS},
    openapi_extra=_BODY,
)
async def generate_streamed(request: Request, tenant: CurrentTenant) -> Response:
    """Generate text, as server-sent events."""
    body = await read_json(request, TgiRequest, MAX_BODY)
    if body.stream is False:
        raise InvalidRequest("stream: this route streams; use /generate", param="stream")
    return await _answer(request, tenant, body, listed=False, stream=True)


async def _answer(request: Request, tenant: Tenant, body: TgiRequest, *, listed: bool, stream: bool) -> Response:
    if stream and body.parameters.decoder_input_details:
        raise InvalidRequest(
            "parameters.decoder_input_details: the prompt's tokens are told in a whole reply only",
            param="parameters.decoder_input_details",
        )
    state = request.app.state
    service: GenerationService = state.generation
    run = await unless_gone(request.receive, service.open(tenant, body.command(stream=stream)), Run.close)
    writer = TgiWriter(
        run,
        body,
        state.tokenizer,
        listed=listed,
        stream=stream,
        model=state.base.name,
        device=state.engine.hello.device,
    )
    return await answer(request, run, writer, stream=stream)
