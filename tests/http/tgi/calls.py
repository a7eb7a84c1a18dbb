"""Requests to the routes of TGI and LoRAX, and what their errors look like."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.http.conftest import Api


async def post(api: Api, route: str, inputs: str = "x", /, stream: bool | None = None, **parameters: Any) -> Any:
    """Send one request; `stream` stands beside the parameters."""
    body: dict[str, Any] = {"inputs": inputs, "parameters": parameters}
    if stream is not None:
        body["stream"] = stream
    return await api.client.post(route, json=body)


async def whole(api: Api, inputs: str = "x", /, **parameters: Any) -> dict[str, Any]:
    """The reply of `/generate`; it must be 200."""
    response = await post(api, "/generate", inputs, **parameters)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def streamed(api: Api, inputs: str = "x", /, **parameters: Any) -> list[dict[str, Any]]:
    """The events of `/generate_stream`."""
    response = await post(api, "/generate_stream", inputs, **parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.text)


def events(text: str) -> list[dict[str, Any]]:
    """Every event of a stream, each one JSON object: there is no `[DONE]`."""
    frames = text.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: {") for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def joined(tokens: list[dict[str, Any]]) -> str:
    """What a client shows: the texts of the tokens that are not special."""
    return "".join(token["text"] for token in tokens if not token["special"])


def refused(response: httpx.Response, status: int, kind: str | None) -> str:
    """Check the error body and return its text."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == ({"error"} if kind is None else {"error", "error_type"})
    assert body.get("error_type") == kind
    text: str = body["error"]
    return text
