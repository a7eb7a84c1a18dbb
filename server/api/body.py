"""Reads a JSON body under a limit, counted on the bytes that come in."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from server.api.client import ClientGone
from server.api.errors import from_validation
from server.errors import BodyStalled, InvalidRequest, TooLarge, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

_JSON = re.compile(r"application/(json|[a-z0-9.-]+\+json)")


SLOWEST = 1024
"""Bytes a second that a body has to come at, on the average."""


async def read_json(request: Request, model: type[Model], limit: int) -> Model:
    """Return the body as `model`.

    Raises UnsupportedMediaType, TooLarge (above `limit` bytes), BodyStalled, InvalidRequest.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if _JSON.fullmatch(media_type) is None:
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    body = await read_bytes(request, limit)
    if not body:
        raise InvalidRequest("the body is empty; a JSON object is needed")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


async def read_bytes(request: Request, limit: int) -> bytes:
    """Return the whole body. Raises TooLarge as soon as more than `limit` bytes came, and BodyStalled."""
    body = bytearray()
    async for chunk in chunks(request):
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
    return bytes(body)


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Raises BodyStalled where the client stands still or trickles, and ClientGone."""
    idle: float = request.app.state.idle_timeout
    started = time.monotonic()
    received = 0
    stream = request.stream()
    while True:
        slack = idle + received / SLOWEST - (time.monotonic() - started)
        try:
            async with asyncio.timeout(min(idle, slack)):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise BodyStalled(f"the body came to {received} bytes and no further") from None
        except ClientDisconnect:
            raise ClientGone from None
        if chunk is None:
            return
        received += len(chunk)
        yield chunk
