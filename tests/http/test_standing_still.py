"""Clients that stop sending or never read: they are let go, and nothing of theirs is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.connections import connection
from tests.http import folders
from tests.http.conftest import Api, MakeApi, until
from tests.http.test_bad_requests import refused
from tests.http.test_life import gate_is_empty

JSON = ("/v1/generate", "application/json", b'{"prompt":')
OTHERS = [(path, *JSON[1:]) for path in ("/v1/chat/completions", "/tokenize", "/generate_stream")]
FORM = (
    "/v1/adapters",
    "multipart/form-data; boundary=b",
    b'--b\r\nContent-Disposition: form-data; name="files"; filename="README.md"\r\n\r\n',
)


@pytest.fixture
async def hasty(make_api: MakeApi) -> Api:
    """A listening server that waits half a second."""
    return await make_api(listen=True, idle_timeout=0.5)


def address(api: Api) -> tuple[str, int]:
    """Where the server listens."""
    split = urlsplit(str(api.client.base_url))
    assert split.hostname is not None
    assert split.port is not None
    return split.hostname, split.port


def head(path: str, media_type: str, length: int) -> bytes:
    """A request's head."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {media_type}", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


async def begin(api: Api, path: str, media_type: str, start: bytes, *, trickle: bool) -> httpx.Response:
    """Send the start of a large body, then nothing or a byte every 20 ms, until the server has closed."""
    reader, writer = await asyncio.open_connection(*address(api))
    writer.write(head(path, media_type, 2**20) + start)

    async def go_on() -> None:
        while True:
            await asyncio.sleep(0.02)
            writer.write(b" ")

    going = asyncio.create_task(go_on() if trickle else asyncio.sleep(0))
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := await asyncio.wait_for(reader.read(2**16), 10):
            answer += part
    going.cancel()
    writer.close()
    status, _, rest = answer.partition(b"\r\n")
    headers, _, body = rest.partition(b"\r\n\r\n")
    fields = [tuple(line.split(b": ", 1)) for line in headers.split(b"\r\n")]
    return httpx.Response(int(status.split()[1]), headers=fields, content=body)  # type: ignore[arg-type]


@pytest.mark.parametrize("trickle", [False, True])
async def test_a_body_that_does_not_come_is_408(hasty: Api, trickle: bool) -> None:
    answer = await begin(hasty, *JSON, trickle=trickle)
    refused(answer, 408, "body_timeout", None)
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("request_line", OTHERS)
async def test_every_route_with_a_body_tells_of_that_in_its_document(
    hasty: Api, request_line: tuple[str, str, bytes]
) -> None:
    answer = await begin(hasty, *request_line, trickle=False)
    assert answer.status_code == 408
    document = (await hasty.client.get("/openapi.json")).json()
    assert "408" in document["paths"][request_line[0]]["post"]["responses"]


@pytest.mark.parametrize("trickle", [False, True])
async def test_uploads_that_stand_still_hold_nobody_up(hasty: Api, trickle: bool) -> None:
    waiting = [asyncio.create_task(begin(hasty, *FORM, trickle=trickle)) for _ in range(4)]
    staged = hasty.store / ".staging"
    await until(lambda: staged.is_dir() and len(list(staged.iterdir())) == 4)
    refused(await hasty.publish("mine", folders.soft_prompt()), 503, "overloaded", None)
    for answer in await asyncio.gather(*waiting):
        refused(answer, 408, "body_timeout", None)
    # By another connection: the first has stood still as long as the uploads, and may just be ending.
    async with httpx.AsyncClient(base_url=hasty.client.base_url, timeout=10, trust_env=False) as client:
        anew = Api(hasty.app, hasty.engine, client, hasty.store)
        assert (await anew.publish("mine", folders.soft_prompt())).status_code == 201
    assert list(staged.iterdir()) == []


async def test_a_stream_that_nobody_reads_ends(hasty: Api) -> None:
    body = json.dumps({"prompt": "x", "n": 16, "max_tokens": 1000, "logprobs": 20, "stream": True}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, address(hasty))
        await loop.sock_sendall(client, head("/v1/generate", "application/json", len(body)) + body)
        await until(lambda: len(hasty.engine.running) == 16)
        await until(lambda: hasty.engine.running == [], seconds=20)
        await gate_is_empty(hasty)
    produced = sum(len(stream.output) for stream in hasty.engine.submitted)
    assert produced < 16_000, "all of it went into buffers; the test shows nothing"


@pytest.mark.parametrize("start", [b"", b"GET /health/live HTTP/1.1\r\n"])
async def test_a_head_that_does_not_come_ends_the_connection(hasty: Api, start: bytes) -> None:
    reader, writer = await asyncio.open_connection(*address(hasty))
    writer.write(start)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


class Transport(asyncio.Transport):
    """A transport whose peer has taken another byte at each of the first twenty looks, and none after that."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        self.looks += 1
        return 1000 - min(self.looks, 20)

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        pass


async def test_a_reader_that_is_slow_but_reads_is_waited_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    config = uvicorn.Config(app)
    config.load()
    made = connection(0.01)(config=config, server_state=ServerState(), app_state={})
    transport = Transport()
    made.connection_made(transport)
    made.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    made.pause_writing()
    await asyncio.wait_for(transport.aborted.wait(), 10)
    made.connection_lost(None)
    assert transport.looks > 20
