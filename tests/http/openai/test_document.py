"""What the OpenAPI document promises of these routes is what they answer."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from server.api.openai.chat_replies import ChatReply
from server.api.openai.completion_replies import CompletionReply
from server.api.openai.models import ModelList
from server.api.openapi import ErrorReply
from server.api.replies import GenerateReply
from server.api.tokenize import TokenizeReply, TokenizerInfo
from tests.http import folders
from tests.http.conftest import Api

USER = [{"role": "user", "content": "hi"}]
EVERYTHING = {"max_tokens": 3, "prompt_logprobs": 2, "return_token_ids": True, "n": 2, "adapter": "soft"}

WITH_KEY = {"400", "401", "405", "500", "503"}
GENERATING = WITH_KEY | {"404", "408", "413", "415", "422"}
PROMISED = {
    ("post", "/v1/generate"): GENERATING,
    ("post", "/v1/completions"): GENERATING,
    ("post", "/v1/chat/completions"): GENERATING,
    ("get", "/v1/models"): WITH_KEY,
    ("get", "/v1/models/{model}"): WITH_KEY | {"404"},
    ("post", "/tokenize"): WITH_KEY | {"404", "408", "413", "415", "422"},
    ("post", "/detokenize"): WITH_KEY | {"404", "408", "413", "415"},
    ("get", "/tokenizer_info"): WITH_KEY,
    ("get", "/v1/adapters"): WITH_KEY | {"404"},
    ("post", "/v1/adapters"): WITH_KEY | {"404", "408", "413", "415", "422"},
}


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/v1/generate", {"prompt": "hi", "logprobs": 2, **EVERYTHING}, GenerateReply),
        ("/v1/completions", {"prompt": "hi"}, CompletionReply),
        ("/v1/completions", {"prompt": "hi", "echo": True, "logprobs": 2, **EVERYTHING}, CompletionReply),
        ("/v1/chat/completions", {"messages": USER, "max_tokens": 2}, ChatReply),
        ("/v1/chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 2, **EVERYTHING}, ChatReply),
        ("/tokenize", {"prompt": "hi"}, TokenizeReply),
        ("/tokenize", {"prompt": "hi", "return_token_strs": True, "adapter": "soft"}, TokenizeReply),
    ],
)
async def test_replies_have_the_promised_fields_and_no_others(
    api: Api, path: str, body: dict[str, Any], shape: type[BaseModel]
) -> None:
    await api.publish("soft", folders.soft_prompt())
    reply = (await api.client.post(path, json=body)).json()
    assert shape.model_validate(reply).model_dump(mode="json", exclude_unset=True) == reply


@pytest.mark.parametrize(("path", "shape"), [("/v1/models", ModelList), ("/tokenizer_info", TokenizerInfo)])
async def test_what_is_got_has_the_promised_fields(api: Api, path: str, shape: type[BaseModel]) -> None:
    await api.publish("soft", folders.soft_prompt())
    reply = (await api.client.get(path)).json()
    assert shape.model_validate(reply).model_dump(mode="json", exclude_unset=True) == reply


async def test_errors_have_the_promised_form(api: Api) -> None:
    for body in ({"prompt": 5}, {"prompt": "x", "a": 1, "b": 2}, {"prompt": "x", "model": "nobody"}):
        reply = (await api.client.post("/v1/completions", json=body)).json()
        assert ErrorReply.model_validate(reply).model_dump(mode="json", exclude_unset=True) == reply


async def test_every_error_is_promised_and_no_other_form(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    for (method, path), statuses in PROMISED.items():
        told = document["paths"][path][method]["responses"]
        assert {status for status in told if status >= "400"} == statuses, path
        for status in statuses:
            schema = told[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorReply"}
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


async def test_every_body_is_described(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    bodies = {
        path: operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    for path, name in {
        "/v1/generate": "GenerateRequest",
        "/v1/completions": "CompletionRequest",
        "/v1/chat/completions": "ChatRequest",
        "/tokenize": "TokenizeRequest",
        "/detokenize": "DetokenizeRequest",
    }.items():
        assert bodies[path] == name
        schema = document["components"]["schemas"][name]
        assert schema["additionalProperties"] is False
