"""Requests that do not run to their end: clients leave, time runs out, engines die, servers stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.fakes import FakeEngine
from tests.http import folders
from tests.http.conftest import Api, MakeApi, events, until
from tests.http.test_bad_requests import refused

LONG = {"prompt": "x", "max_tokens": 1000}


@asynccontextmanager
async def streaming(api: Api, **body: Any) -> AsyncIterator[httpx.Response]:
    """An open stream."""
    async with api.client.stream("POST", "/v1/generate", json={**LONG, "stream": True, **body}) as response:
        yield response


@pytest.fixture
async def slow(make_api: MakeApi) -> Api:
    """A listening server whose engine makes a token every 10 ms."""
    return await make_api(FakeEngine(step_seconds=0.01), listen=True)


async def gate_is_empty(api: Api) -> None:
    """Nothing is left of any request."""
    await until(lambda: api.engine.running == [] and api.app.state.gate.open == 0, seconds=1.0)


async def test_a_client_that_leaves_a_stream_ends_its_sequences(slow: Api) -> None:
    async with streaming(slow, n=3) as response:
        async for _ in response.aiter_lines():
            break
        assert len(slow.engine.running) == 3
    await gate_is_empty(slow)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_byte_ends_its_sequences(slow: Api, stream: bool) -> None:
    slow.engine.pause()
    request = asyncio.create_task(slow.generate(**LONG, stream=stream))
    await until(lambda: bool(slow.engine.running))
    request.cancel()
    await gate_is_empty(slow)


async def test_a_client_that_leaves_an_unstreamed_request_ends_its_sequences(slow: Api) -> None:
    request = asyncio.create_task(slow.generate(**LONG))
    await until(lambda: any(stream.output for stream in slow.engine.running))
    request.cancel()
    await gate_is_empty(slow)


async def test_a_client_that_leaves_an_upload_leaves_nothing(slow: Api) -> None:
    staged = slow.store / ".staging"

    async def half() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="README.md"\r\n\r\n' + b"x" * 1000
        await asyncio.sleep(60)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request = asyncio.create_task(slow.client.post("/v1/adapters", content=half(), headers=headers))
    await until(lambda: staged.is_dir() and any(staged.glob("*/README.md")))
    request.cancel()
    await until(lambda: not any(staged.iterdir()))
    await gate_is_empty(slow)


async def test_a_reader_that_is_slow_gets_everything(slow: Api) -> None:
    text = await slow.text(prompt="x", max_tokens=30)
    async with streaming(slow, max_tokens=30) as response:
        await asyncio.sleep(0.5)
        frames = events((await response.aread()).decode())
    deltas = [delta for frame in frames[:-1] for delta in frame["choices"]]
    assert "".join(delta["text"] for delta in deltas) == text


async def test_time_that_runs_out_before_the_first_token_is_408(make_api: MakeApi) -> None:
    api = await make_api()
    api.engine.pause()
    for stream in (False, True):
        response = await api.generate(**LONG, timeout_s=0.05, stream=stream)
        refused(response, 408, "timeout", None)
        assert response.headers["x-should-retry"] == "false"
        await gate_is_empty(api)


async def test_time_that_runs_out_later_is_408_or_the_finish_reason(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(step_seconds=0.01))
    refused(await api.generate(**LONG, timeout_s=0.2), 408, "timeout", None)
    *frames, last, done = events((await api.generate(**LONG, timeout_s=0.2, stream=True)).text)
    assert done == "[DONE]"
    assert frames[-1]["choices"][0]["finish_reason"] == "timeout"
    assert 0 < last["usage"]["completion_tokens"] < 100
    await gate_is_empty(api)


async def test_an_engine_fault_before_the_first_token_is_500(make_api: MakeApi) -> None:
    api = await make_api()
    api.engine.fail_after = 0
    for stream in (False, True):
        refused(await api.generate(prompt="x", stream=stream), 500, "engine_error", None)
    await gate_is_empty(api)


async def test_an_engine_fault_in_a_stream_is_its_last_event(make_api: MakeApi) -> None:
    api = await make_api()
    api.engine.fail_after = 3
    *frames, error, done = events((await api.generate(prompt="x", n=2, stream=True)).text)
    assert done == "[DONE]"
    assert frames
    assert error["error"]["code"] == "engine_error"
    assert all(delta["finish_reason"] is None for frame in frames for delta in frame["choices"])
    await gate_is_empty(api)


async def test_an_engine_that_dies_ends_open_requests_and_the_next_one_waits_for_it(slow: Api) -> None:
    whole = asyncio.create_task(slow.generate(**LONG))
    async with streaming(slow) as response:
        lines = response.aiter_lines()
        await anext(lines)
        await until(lambda: len(slow.engine.running) == 2)
        slow.engine.die()
        rest = [line async for line in lines if line]
    assert "engine_restarting" in rest[-2]
    assert rest[-1] == "data: [DONE]"
    refusal = await whole
    refused(refusal, 503, "engine_restarting", None)
    assert int(refusal.headers["retry-after"]) > 0
    not_ready = await slow.client.get("/health/ready")
    refused(not_ready, 503, "engine_restarting", None)
    assert (await slow.client.get("/health/live")).status_code == 200
    later = asyncio.create_task(slow.generate(prompt="x", max_tokens=1))
    await asyncio.sleep(0.05)
    slow.engine.revive()
    assert (await later).status_code == 200
    assert (await slow.client.get("/health/ready")).status_code == 200


async def test_a_server_that_drains_finishes_what_runs_and_takes_no_more(slow: Api) -> None:
    running = asyncio.create_task(slow.generate(prompt="x", max_tokens=50))
    async with streaming(slow, max_tokens=50) as response:
        await until(lambda: len(slow.engine.running) == 2)
        slow.app.state.server.handle_exit(signal.SIGTERM, None)
        await until(lambda: slow.app.state.gate.draining)
        not_ready = await slow.client.get("/health/ready")
        refused(not_ready, 503, "draining", None)
        assert int(not_ready.headers["retry-after"]) > 0
        refused(await slow.generate(prompt="x"), 503, "draining", None)
        refused(await slow.publish("mine", folders.soft_prompt()), 503, "draining", None)
        assert (await slow.client.get("/health/live")).status_code == 200
        assert events((await response.aread()).decode())[-1] == "[DONE]"
    assert len((await running).json()["choices"][0]["text"]) == 50
    await asyncio.wait_for(slow.app.state.serving, 8)


async def test_a_drain_that_takes_too_long_ends_what_runs(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(step_seconds=0.01), listen=True, shutdown_timeout=0.1)
    whole = asyncio.create_task(api.generate(**LONG))
    async with streaming(api) as response:
        await until(lambda: len(api.engine.running) == 2)
        api.app.state.server.handle_exit(signal.SIGTERM, None)
        *_, error, done = events((await response.aread()).decode())
    assert (error["error"]["code"], done) == ("draining", "[DONE]")
    refused(await whole, 503, "draining", None)
    await asyncio.wait_for(api.app.state.serving, 8)
