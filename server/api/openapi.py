"""The OpenAPI document: bodies that the routes read themselves, and errors that any of them may answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from server.errors import all_errors

_COMPONENTS = "#/components/schemas/{model}"


class ErrorObject(BaseModel):
    """What went wrong; `param` names the field at fault, `details` lists the findings where there are several."""

    message: str
    type: str
    param: str | None
    code: str
    details: list[str] = []


class ErrorReply(BaseModel):
    """The answer to a request that failed."""

    error: ErrorObject


ANY_ROUTE = (400, 401, 405, 500, 503)
"""Statuses that every route behind a key may answer."""

WITH_BODY = (*ANY_ROUTE, 408, 413, 415)
"""And those of routes with a JSON body."""

GENERATING = (*WITH_BODY, 404, 422)
"""And those of routes that generate text, perhaps with an adapter."""


def error_replies(statuses: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    """Return a route's description of its errors in OpenAI's words."""
    codes = {
        status: ", ".join(error.code for error in all_errors() if error.status == status) for status in sorted(statuses)
    }
    return {status: {"model": ErrorReply, "description": f"`error.code`: {told}"} for status, told in codes.items()}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the route's description of a JSON body."""
    schema = {"$ref": _COMPONENTS.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def event_stream(data: str, *models: type[BaseModel]) -> dict[str, Any]:
    """Return a route's description of server-sent events: what their `data` is in words, and as one of the models."""
    told: dict[str, Any] = {"type": "string", "description": data}
    if models:
        references = [{"$ref": _COMPONENTS.format(model=model.__name__)} for model in models]
        told |= {"contentMediaType": "application/json", "contentSchema": {"anyOf": references}}
    event = {"type": "object", "properties": {"data": told}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": event}}


def form_body(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the route's description of a multipart body."""
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def install(app: FastAPI, models: tuple[type[BaseModel], ...]) -> None:
    """Let the app's document hold these models' schemas."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            for model in models:
                schema = model.model_json_schema(ref_template=_COMPONENTS)
                schemas.update(schema.pop("$defs", {}))
                schemas[model.__name__] = schema
            _drop_unused(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _drop_unused(made: dict[str, Any]) -> None:
    """Take out the error that FastAPI announces for every route with parameters: here it never leaves the house."""
    for operations in made["paths"].values():
        for operation in operations.values():
            told = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
            if told.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        made["components"]["schemas"].pop(name, None)
