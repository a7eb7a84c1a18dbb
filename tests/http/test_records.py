"""Request ids, log lines and metrics; and that no prompt, answer or key is ever among them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.logs import JsonFormatter
from server.service.tenants import add_key
from tests.fakes import FakeEngine
from tests.http import folders
from tests.http.conftest import Api, MakeApi, until


class Lines:
    """Everything that is logged, as the server writes it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        """All of it."""
        return self.stream.getvalue()

    def requests(self) -> list[dict[str, Any]]:
        """The request log."""
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if line["logger"] == "waybill.requests"]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log of the test."""
    lines = Lines()
    handler = logging.StreamHandler(lines.stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(lambda record: not record.name.startswith("http"))  # the client's own log
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


def sample(api_text: str, name: str, **labels: str) -> float:
    """One sample of the exposition."""
    for line in api_text.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"{name} {labels} is not there")


@pytest.mark.parametrize("given", ["abc-1.2:3_X", "a" * 64])
async def test_a_request_id_is_given_back(api: Api, given: str) -> None:
    for body in ({"prompt": "x", "max_tokens": 1}, {"prompt": "x", "max_tokens": 1, "stream": True}, {}):
        response = await api.client.post("/v1/generate", json=body, headers={"X-Request-Id": given})
        assert response.headers["x-request-id"] == given
    reply = await api.client.post(
        "/v1/generate", json={"prompt": "x", "max_tokens": 1}, headers={"X-Request-Id": given}
    )
    assert reply.json()["id"] == f"gen-{given}"


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, 'x"y', "é"])
async def test_a_malformed_request_id_is_replaced(api: Api, given: str) -> None:
    response = await api.client.get("/nothing", headers={"X-Request-Id": given.encode()})
    assert response.status_code == 404
    assert response.headers["x-request-id"] not in ("", given)


async def test_one_line_for_each_request(api: Api, lines: Lines) -> None:
    card = (await api.publish("mine", folders.soft_prompt())).json()
    await api.client.post(
        "/v1/generate", json={"adapter": "mine", "prompt": "abc", "max_tokens": 2}, headers={"X-Request-Id": "r1"}
    )
    await api.generate(prompt="x", temperature=9)
    await api.client.get("/no/such/route/secret")
    upload, generate, bad, unknown = lines.requests()
    assert (upload["route"], upload["status"], upload["adapter"]) == ("/v1/adapters", 201, "mine")
    assert generate["request_id"] == "r1"
    assert (generate["method"], generate["route"], generate["status"]) == ("POST", "/v1/generate", 200)
    assert (generate["tenant"], generate["adapter"], generate["digest"]) == ("default", "mine", card["digest"])
    assert (generate["in"], generate["out"]) == (3, 2)
    assert {"ts", "level", "queue_ms", "ttft_ms", "total_ms"} <= set(generate)
    assert (bad["status"], bad["error"]) == (400, "invalid_request")
    assert (unknown["status"], unknown["route"]) == (404, "unknown")


async def test_a_client_that_left_is_logged_as_499(make_api: MakeApi, lines: Lines) -> None:
    api = await make_api(FakeEngine(step_seconds=0.01), listen=True)
    body = {"prompt": "x", "max_tokens": 1000, "stream": True}
    async with api.client.stream("POST", "/v1/generate", json=body) as response:
        assert response.status_code == 200
    await until(lambda: bool(lines.requests()))
    assert lines.requests()[0]["status"] == 499
    assert 'waybill_requests_total{route="/v1/generate",status="499"} 1.0' in (await api.client.get("/metrics")).text


async def test_no_prompt_answer_or_key_is_ever_logged(make_api: MakeApi, tmp_path: Path, lines: Lines) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "acme")
    secret = key.split("_")[2]
    api = await make_api(FakeEngine(), keys=keys)
    canary = "CANARY-7391"
    api.client.headers["Authorization"] = f"Bearer {key}"
    bodies: list[dict[str, Any]] = [
        {"prompt": canary, "max_tokens": 3},
        {"prompt": canary, "max_tokens": 3, "stream": True},
        {"prompt": canary * 200},
        {"prompt": canary, canary: canary},
        {"messages": [{"role": canary, "content": canary}]},
        {"messages": [{"role": "user", "content": canary}], "stop": canary},
        {"fields": {canary: canary}},
        {"prompt": canary, "adapter": canary.lower()},
    ]
    for body in bodies:
        await api.generate(**body)
    api.engine.fail_after = 1
    await api.generate(prompt=canary)
    await api.generate(prompt=canary, stream=True)

    class Broken:
        async def open(self, *_: object) -> object:
            raise ValueError(canary)

    api.app.state.generation = Broken()
    assert (await api.generate(prompt=canary)).status_code == 500
    await api.client.get(f"/{canary}", params={"q": canary}, headers={"X-Canary": canary})
    await api.client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
    metrics = (await api.client.get("/metrics")).text
    assert len(lines.requests()) == len(bodies) + 6
    for text in (lines.text, metrics):
        assert canary.lower() not in text.lower()
        assert secret not in text


async def test_metrics_count_requests_tokens_and_steps(api: Api) -> None:
    await api.publish("mine", folders.soft_prompt(4))
    await api.publish("mine", folders.soft_prompt(4))
    await api.publish("mine", folders.prefix(4), dry_run="1")
    await api.publish("mine", {})
    await api.generate(adapter="mine", prompt="abc", max_tokens=5, n=2)
    await api.generate(prompt="abc", max_tokens=1, stream=True)
    text = (await api.client.get("/metrics")).text
    model = {"model_name": "bytes"}
    assert sample(text, "vllm:prompt_tokens_total", **model) == 6
    assert sample(text, "vllm:generation_tokens_total", **model) == 11
    assert sample(text, "vllm:prefix_cache_queries_total", **model) == 9
    assert sample(text, "vllm:prefix_cache_hits_total", **model) == 2
    assert sample(text, "waybill_virtual_tokens_total", **model) == 4
    assert sample(text, "vllm:request_success_total", finished_reason="length", **model) == 3
    assert sample(text, "vllm:time_to_first_token_seconds_count", **model) == 2
    assert sample(text, "vllm:inter_token_latency_seconds_count", **model) == 8
    assert sample(text, "vllm:e2e_request_latency_seconds_count", **model) == 2
    assert sample(text, "waybill_batch_sequences_count", **model) == 6
    assert sample(text, "waybill_batch_sequences_sum", **model) == 11
    assert sample(text, "vllm:num_requests_running", **model) == 1
    assert sample(text, "waybill_kv_blocks_total", **model) == 64
    assert sample(text, "waybill_requests_total", route="/v1/generate", status="200") == 2
    for outcome in ("created", "existing", "checked"):
        assert sample(text, "waybill_uploads_total", outcome=outcome) == 1


async def test_an_engine_that_dies_is_counted(api: Api) -> None:
    name, label = "waybill_engine_deaths_total", {"model_name": "bytes"}
    assert sample((await api.client.get("/metrics")).text, name, **label) == 0
    api.engine.die()
    assert sample((await api.client.get("/metrics")).text, name, **label) == 1


async def test_the_models_route_names_the_base(api: Api) -> None:
    (card,) = (await api.client.get("/v1/models")).json()["data"]
    assert (card["id"], card["object"], card["family"]) == ("bytes", "model", "llama")
    assert card["digest"].startswith("sha256:")
    assert (card["max_model_len"], card["vocab_size"]) == (1024, folders.VOCABULARY)
