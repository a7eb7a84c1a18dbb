"""Reads a JSON body under a limit, counted on the bytes that come in."""

from __future__ import annotations

import re
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from server.api.client import ClientGone
from server.api.errors import from_validation
from server.errors import InvalidRequest, TooLarge, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

_JSON = re.compile(r"application/(json|[a-z0-9.-]+\+json)")


async def read_json(request: Request, model: type[Model], limit: int) -> Model:
    """Return the body as `model`. Raises UnsupportedMediaType, TooLarge (above `limit` bytes), InvalidRequest."""
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
    """Return the whole body. Raises TooLarge as soon as more than `limit` bytes came."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise TooLarge(f"the body is larger than {limit} bytes")
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)
