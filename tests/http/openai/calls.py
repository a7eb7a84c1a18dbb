"""Calls of OpenAI's routes, as the tests here make them."""

from __future__ import annotations

from typing import Any

import httpx

from tests.http.conftest import Api, events

HELLO = [{"role": "user", "content": "hello"}]


async def complete(api: Api, **body: Any) -> httpx.Response:
    """POST /v1/completions."""
    return await api.client.post("/v1/completions", json={"prompt": "hello", **body})


async def chat(api: Api, **body: Any) -> httpx.Response:
    """POST /v1/chat/completions."""
    return await api.client.post("/v1/chat/completions", json={"messages": HELLO, **body})


def choice(response: httpx.Response) -> dict[str, Any]:
    """The only choice of an answer."""
    assert response.status_code == 200, response.text
    (only,) = response.json()["choices"]
    found: dict[str, Any] = only
    return found


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream that ended well, without [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *told, done = events(response.text)
    assert done == "[DONE]"
    return told
