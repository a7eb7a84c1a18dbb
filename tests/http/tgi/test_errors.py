"""What TGI's and LoRAX's routes refuse: their statuses and their body, and nothing reaches the engine."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from server.service.tenants import add_key
from tests.fakes import FakeEngine
from tests.http.conftest import Api, MakeApi, until
from tests.http.tgi.calls import post, refused

ROUTES = ("/", "/generate", "/generate_stream")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"unknown": 1}, "parameters.unknown: unknown field"),
        ({"guideline": None}, "parameters.guideline: unknown field"),
        ({"temperature": -0.1}, "parameters.temperature"),
        ({"temperature": "1"}, "parameters.temperature"),
        ({"top_k": 0}, "parameters.top_k"),
        ({"top_p": 0}, "parameters.top_p"),
        ({"top_p": 1.1}, "parameters.top_p"),
        ({"typical_p": 0}, "parameters.typical_p"),
        ({"repetition_penalty": 0}, "parameters.repetition_penalty"),
        ({"frequency_penalty": 2.1}, "parameters.frequency_penalty"),
        ({"presence_penalty": -2.1}, "parameters.presence_penalty"),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens"),
        ({"stop": "a"}, "parameters.stop"),
        ({"stop": [""]}, "parameters.stop.0"),
        ({"stop": ["a"] * 17}, "parameters.stop"),
        ({"stop": ["a"], "stop_sequences": ["b"]}, "stop and stop_sequences"),
        ({"truncate": 0}, "parameters.truncate"),
        ({"seed": -1}, "parameters.seed"),
        ({"best_of": 2}, "parameters.best_of: one answer is made"),
        ({"watermark": True}, "parameters.watermark"),
        ({"top_n_tokens": 21}, "parameters.top_n_tokens"),
        ({"return_k_alternatives": 0}, "parameters.return_k_alternatives"),
        ({"apply_chat_template": True}, "parameters.apply_chat_template"),
        ({"adapter_source": "hub"}, "parameters.adapter_source"),
        ({"api_token": "secret"}, "no token is taken"),
        ({"merged_adapters": {"ids": ["a"], "weights": [1]}}, "adapters are not merged"),
        ({"adapter_id": "../etc"}, "adapter: '..' is not"),
        ({"grammar": {"type": "regex"}}, "parameters.grammar.value"),
        ({"grammar": {"type": "regex", "value": "a"}, "response_format": {"type": "text"}}, "exclude each other"),
        ({"response_format": {"type": "text", "schema": {}}}, "parameters.response_format"),
        ({"response_format": {"type": "json_schema"}}, "parameters.response_format"),
        ({"max_new_tokens": 1024}, "1024"),
    ],
)
async def test_a_bad_parameter_is_422_and_named(api: Api, route: str, parameters: dict[str, Any], field: str) -> None:
    text = refused(await post(api, route, **parameters), 422, "validation")
    assert field in text
    assert "secret" not in text
    assert api.engine.submitted == []


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/", {}),
        ("/", {"inputs": 5}),
        ("/", {"inputs": ["a", "b"]}),
        ("/", {"inputs": ""}),
        ("/", {"inputs": "x", "parameters": 5}),
        ("/", {"inputs": "x", "stream": "yes"}),
        ("/", {"inputs": "x", "temperature": 1}),
        ("/", {"inputs": "x", "stream": True, "parameters": {"decoder_input_details": True}}),
        ("/generate", {"inputs": "x", "stream": True}),
        ("/generate_stream", {"inputs": "x", "stream": False}),
        ("/generate_stream", {"inputs": "x", "parameters": {"decoder_input_details": True}}),
    ],
)
async def test_a_bad_body_is_422(api: Api, route: str, body: dict[str, Any]) -> None:
    refused(await api.client.post(route, json=body), 422, "validation")
    assert api.engine.submitted == []


@pytest.mark.parametrize("route", ROUTES)
async def test_null_is_the_same_as_absent(api: Api, route: str) -> None:
    names = (
        "adapter_id", "adapter_source", "api_token", "merged_adapters", "do_sample", "temperature", "top_k", "top_p",
        "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "max_new_tokens", "seed", "stop",
        "ignore_eos_token", "stop_sequences", "truncate", "best_of", "watermark", "return_full_text", "details",
        "decoder_input_details", "top_n_tokens", "return_k_alternatives", "grammar", "response_format",
        "apply_chat_template",
    )  # fmt: skip
    plain = await post(api, route)
    nulls = await post(api, route, **dict.fromkeys(names))
    assert nulls.text == plain.text
    bare = await api.client.post(route, json={"inputs": "x", "parameters": None, "stream": None})
    assert bare.text == plain.text


async def test_several_findings_are_one_text(api: Api) -> None:
    response = await post(api, "/", temperature=-1, top_k=0)
    text = refused(response, 422, "validation")
    assert "parameters.temperature" in text
    assert "parameters.top_k" in text
    many = await post(api, "/", **{f"field{'x' * 5000}{i}": 1 for i in range(500)})
    assert len(refused(many, 422, "validation")) < 10_000


@pytest.mark.parametrize("route", ROUTES)
async def test_an_unknown_adapter_is_404(api: Api, route: str) -> None:
    assert "nobody" in refused(await post(api, route, adapter_id="nobody"), 404, None)


@pytest.mark.parametrize("route", ROUTES)
async def test_the_wire_has_statuses_of_its_own(api: Api, route: str) -> None:
    client, json_type = api.client, {"Content-Type": "application/json"}
    refused(await client.post(route, content=b"{}"), 415, "validation")
    refused(await client.post(route, content=b"{", headers=json_type), 422, "validation")
    refused(await client.post(route, content=b" " * (8 * 2**20 + 1), headers=json_type), 413, "validation")
    response = await client.delete(route)
    refused(response, 405, None)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("route", ROUTES)
async def test_without_a_key_it_is_401(make_api: MakeApi, tmp_path: Path, route: str) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "acme")
    api = await make_api(keys=keys)
    response = await post(api, route)
    refused(response, 401, None)
    assert response.headers["www-authenticate"] == "Bearer"
    refused(await api.client.get("/info"), 401, None)
    api.client.headers["Authorization"] = f"Bearer {key}"
    assert (await post(api, route, max_new_tokens=1)).status_code == 200
    assert (await api.client.get("/info")).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
async def test_an_engine_fault_before_the_first_token_is_424(api: Api, route: str) -> None:
    api.engine.fail_after = 0
    refused(await post(api, route), 424, "generation")


@pytest.mark.parametrize("route", ROUTES)
async def test_a_full_queue_is_429(make_api: MakeApi, route: str) -> None:
    api = await make_api(max_seqs=1, queue=0)
    api.engine.pause()
    waiting = asyncio.create_task(post(api, "/generate", max_new_tokens=2))
    await until(lambda: bool(api.engine.running))
    response = await post(api, route)
    refused(response, 429, "overloaded")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    api.engine.resume()
    assert (await waiting).status_code == 200


async def test_a_server_that_drains_is_429_and_not_well(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(step_seconds=0.01), listen=True)
    running = asyncio.create_task(post(api, "/generate", max_new_tokens=30))
    await until(lambda: bool(api.engine.running))
    api.app.state.server.handle_exit(signal.SIGTERM, None)
    await until(lambda: api.app.state.gate.draining)
    refused(await post(api, "/"), 429, "overloaded")
    refused(await api.client.get("/health"), 503, "healthcheck")
    assert len((await running).json()["generated_text"]) == 30
    await asyncio.wait_for(api.app.state.serving, 8)


async def test_a_surprise_is_a_plain_500(api: Api) -> None:
    class Broken:
        async def open(self, *_: object) -> object:
            raise AssertionError("secret")

    api.app.state.generation = Broken()
    assert refused(await post(api, "/"), 500, "incomplete_generation") == "internal error"


async def test_the_document_tells_of_every_status(api: Api) -> None:
    paths = (await api.client.get("/openapi.json")).json()["paths"]
    generating = {"200", "400", "401", "404", "405", "408", "413", "415", "422", "424", "429", "500"}
    assert all(set(paths[route]["post"]["responses"]) == generating for route in ROUTES)
    assert set(paths["/info"]["get"]["responses"]) == {"200", "400", "401", "405", "422", "500"}
    assert set(paths["/health"]["get"]["responses"]) == {"200", "400", "405", "500", "503"}
    refused(await api.client.post("/health"), 405, None)


async def test_other_routes_keep_their_words(api: Api) -> None:
    error = (await api.generate(prompt="x", top_k=-5)).json()["error"]
    assert error["code"] == "invalid_request"
    assert (await api.client.get("/nothing")).json()["error"]["code"] == "not_found"
