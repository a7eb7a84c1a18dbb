"""What is refused: each thing with its own status, code and field, in one shape, and nothing reaches the engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.http import folders
from tests.http.conftest import Api, MakeApi, until

CHAT = [{"role": "user", "content": "hi"}]


def refused(response: Any, status: int, code: str, param: str | None) -> str:
    """Check the error object and return its message."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error) <= {"message", "type", "param", "code", "details"}
    assert (error["code"], error["param"]) == (code, param)
    message: str = error["message"]
    return message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "unknown": 1}, "unknown"),
        ({"prompt": "x", "guided_json": None}, "guided_json"),
        ({"prompt": "x", "temperature": 5.1}, "temperature"),
        ({"prompt": "x", "temperature": -0.1}, "temperature"),
        ({"prompt": "x", "temperature": "1"}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "top_k": -2}, "top_k"),
        ({"prompt": "x", "min_p": 1.5}, "min_p"),
        ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty"),
        ({"prompt": "x", "presence_penalty": 3}, "presence_penalty"),
        ({"prompt": "x", "frequency_penalty": -3}, "frequency_penalty"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 17}, "n"),
        ({"prompt": "x", "n": True}, "n"),
        ({"prompt": ["x"] * 33, "n": 2}, "n"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 2, "max_new_tokens": 3}, None),
        ({"prompt": "x", "max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt": "x", "prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt": "x", "prompt_logprobs": 0, "stream": True}, None),
        ({"prompt": "x", "labels": []}, "labels"),
        ({"prompt": "x", "labels": [""]}, "labels.0"),
        ({"prompt": "x", "labels": ["a" * 257]}, "labels.0"),
        ({"prompt": "x", "labels": ["a"] * 257}, "labels"),
        ({"prompt": "x", "labels": ["a", "b", "a"]}, None),
        ({"prompt": ["x"] * 5, "labels": [str(i) for i in range(205)]}, "labels"),
        ({"prompt": "", "labels": ["a"]}, "prompt"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "seed": 2**63}, "seed"),
        ({"prompt": "x", "timeout_s": 0}, "timeout_s"),
        ({"prompt": "x", "timeout_s": 3601}, "timeout_s"),
        ({"prompt": "x", "stop": ""}, "stop"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "x", "stop": ["a" * 257]}, "stop.0"),
        ({"prompt": "x", "stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({}, None),
        ({"prompt": "x", "messages": CHAT}, None),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
        ({"prompt": "x", "task": 1}, "task"),
        ({"fields": {"text": "x"}}, "fields"),
        ({"prompt": ""}, "prompt"),
    ],
)
async def test_a_bad_field_is_named(api: Api, body: dict[str, Any], param: str | None) -> None:
    refused(await api.generate(**body), 400, "invalid_request", param)
    assert api.engine.submitted == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, folders.VOCABULARY]}, "prompt"),
        ({"prompt": [[1], [folders.VOCABULARY + 3]]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": "x", "stop_token_ids": [folders.VOCABULARY]}, "stop_token_ids"),
        ({"prompt": "x", "logit_bias": {str(folders.VOCABULARY): 1}}, "logit_bias"),
    ],
)
async def test_ids_outside_the_vocabulary_are_refused(api: Api, body: dict[str, Any], param: str) -> None:
    refused(await api.generate(**body), 400, "invalid_request", param)
    assert api.engine.submitted == []


@pytest.mark.parametrize("name", ["../etc", "a,b", "a\nb", "a/b/c", "A", "a@v0", "a@Latest", "@v1", "a" * 300])
async def test_a_malformed_reference_is_refused(api: Api, name: str) -> None:
    refused(await api.generate(prompt="x", adapter=name), 400, "invalid_request", "adapter")


async def test_context_counts_prompt_and_output(api: Api) -> None:
    message = refused(
        await api.generate(prompt="x" * 1000, max_tokens=25), 400, "context_length_exceeded", "max_tokens"
    )
    assert "1000 tokens" in message
    assert "1024" in message
    refused(await api.generate(prompt="x" * 1024), 400, "context_length_exceeded", "prompt")


async def test_context_counts_virtual_tokens(api: Api) -> None:
    await api.publish("wide", folders.prefix(500))
    body = {"prompt": "x" * 520, "max_tokens": 10}
    assert (await api.generate(**body)).status_code == 200
    message = refused(await api.generate(**body, adapter="wide"), 400, "context_length_exceeded", "max_tokens")
    assert "500 of them virtual" in message


async def test_the_body_is_json_and_not_too_large(api: Api) -> None:
    post = api.client.post
    json_type = {"Content-Type": "application/json"}
    refused(await post("/v1/generate", content=b"{}"), 415, "unsupported_media_type", None)
    refused(await post("/v1/generate", data={"prompt": "x"}), 415, "unsupported_media_type", None)
    refused(await post("/v1/generate", content=b"", headers=json_type), 400, "invalid_request", None)
    refused(await post("/v1/generate", content=b"{", headers=json_type), 400, "invalid_request", None)
    refused(await post("/v1/generate", content=b"[" * 100_000, headers=json_type), 400, "invalid_request", None)
    nan = b'{"prompt": "x", "temperature": NaN}'
    refused(await post("/v1/generate", content=nan, headers=json_type), 400, "invalid_request", "temperature")
    large = b" " * (8 * 2**20 + 1)
    refused(await post("/v1/generate", content=large, headers=json_type), 413, "payload_too_large", None)

    async def unannounced() -> Any:
        for _ in range(9):
            yield b" " * 2**20

    refused(await post("/v1/generate", content=unannounced(), headers=json_type), 413, "payload_too_large", None)


async def test_an_answer_never_echoes_much(api: Api) -> None:
    body = {"prompt": [5] * 3, **{f"field{'x' * 5000}{i}": "y" * 1000 for i in range(500)}}
    response = await api.generate(**body)
    assert response.status_code == 400
    assert len(response.json()["error"]["details"]) == 10
    assert len(response.content) < 10_000
    assert b"yyy" not in response.content


async def test_unknown_routes_and_methods_have_the_same_shape(api: Api) -> None:
    refused(await api.client.get("/v1/nothing"), 404, "not_found", None)
    response = await api.client.get("/v1/generate")
    refused(response, 405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"


async def test_a_full_queue_is_503_with_retry_after(make_api: MakeApi) -> None:
    api = await make_api(max_seqs=1, queue=1)
    response = await api.generate(prompt="x", n=3)
    refused(response, 400, "invalid_request", None)
    api.engine.pause()
    waiting = asyncio.create_task(api.generate(prompt="x", n=2, max_tokens=2))
    await until(lambda: bool(api.engine.running))
    response = await api.generate(prompt="x")
    refused(response, 503, "overloaded", None)
    assert 1 <= int(response.headers["retry-after"]) <= 60
    api.engine.resume()
    assert (await waiting).status_code == 200
    assert (await api.generate(prompt="x")).status_code == 200


async def test_a_surprise_is_a_plain_500(api: Api) -> None:
    class Broken:
        async def open(self, *_: object) -> object:
            raise AssertionError("secret")

    api.app.state.generation = Broken()
    response = await api.generate(prompt="x")
    refused(response, 500, "internal_error", None)
    assert "secret" not in response.text
    assert "Error" not in response.json()["error"]["message"]


async def test_the_api_describes_itself(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/v1/generate", "/v1/models", "/v1/adapters", "/v1/adapters/{name}", "/v1/adapters/{name}/versions",
        "/v1/adapters/{name}/versions/{version}", "/v1/adapters/{name}/versions/{version}/download",
        "/v1/adapters/{name}/aliases/{alias}", "/v1/adapters/{name}/aliases/{alias}:rollback",
        "/v1/adapters/{name}/residency", "/v1/adapters/{name}:verify",
        "/health/live", "/health/ready", "/metrics",
        "/", "/generate", "/generate_stream", "/info", "/health", "/ping",
        "/v1/completions", "/v1/chat/completions", "/v1/models/{model}", "/tokenize", "/detokenize", "/tokenizer_info",
    }  # fmt: skip
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert fields["temperature"]["maximum"] == 5
    known = set(document["components"]["schemas"])
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= known


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/adapters", "GET, POST"),
        ("/v1/adapters/mine", "DELETE, GET, PATCH"),
        ("/generate", "POST"),
        ("/metrics", "GET"),
    ],
)
async def test_a_wrong_method_is_told_all_that_the_path_has(api: Api, path: str, methods: str) -> None:
    response = await api.client.request("TRACE", path)
    assert response.status_code == 405
    assert response.headers["allow"] == methods
