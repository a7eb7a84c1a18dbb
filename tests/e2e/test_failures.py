"""What happens when clients, the engine or the server itself go away."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import upload
from tests.e2e.running import RunningServer, running
from tests.e2e.tiny import make_tiny, soft_prompt

ENDLESS = {"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("failures")
    with running(folder / "store", folder, "--max-model-len", "4096", "--kv-memory", "1GiB") as running_server:
        yield running_server


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what} took over {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began


def idle(server: RunningServer) -> bool:
    return server.metric("vllm:num_requests_running") == 0 and server.metric("waybill_kv_blocks_used") == 0


def busy(server: RunningServer) -> bool:
    return server.metric("vllm:num_requests_running") > 0


def test_a_dropped_stream_frees_its_memory(server: RunningServer) -> None:
    with server.client() as client, client.stream("POST", "/v1/generate", json=ENDLESS | {"stream": True}) as reply:
        lines = reply.iter_lines()  # kept: httpx closes a stream whose iterator is gone
        next(lines)
        until(lambda: busy(server), 5, "starting")
    until(lambda: idle(server), 1.0, "freeing a dropped stream")


def test_a_dropped_request_frees_its_memory(server: RunningServer) -> None:
    client = server.client()
    failed = threading.Event()

    def ask() -> None:
        try:
            client.post("/v1/generate", json=ENDLESS)
        except httpx.TransportError:
            failed.set()

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: busy(server), 5, "starting")
    transport_socket = client._transport._pool.connections[0]._connection._network_stream.get_extra_info("socket")  # type: ignore[attr-defined]
    transport_socket.shutdown(2)
    until(lambda: idle(server), 1.0, "freeing a dropped request")
    thread.join(10)
    assert failed.is_set()
    client.close()


def test_a_deadline(server: RunningServer) -> None:
    with server.client() as client:
        reply = client.post("/v1/generate", json=ENDLESS | {"timeout_s": 0.5})
        assert reply.status_code == 408
        assert reply.json()["error"]["code"] == "timeout"
        frames = events(client, ENDLESS | {"timeout_s": 0.7, "stream": True})
    assert frames[-1] == "[DONE]"
    finishes = [choice["finish_reason"] for frame in frames[:-1] for choice in frame["choices"]]
    assert finishes[-1] == "timeout"
    until(lambda: idle(server), 1.0, "freeing what ran out of time")


def events(client: httpx.Client, request: dict[str, Any]) -> list[Any]:
    """All frames of a stream, parsed; `[DONE]` stays text."""
    with client.stream("POST", "/v1/generate", json=request) as reply:
        assert reply.status_code == 200
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_the_stream_is_the_answer_in_pieces(server: RunningServer) -> None:
    request = {
        "prompt": "Emoji: 😀 🎉. Write some more emoji:",
        "max_tokens": 40,
        "n": 2,
        "temperature": 1.2,
        "seed": 5,
    }
    with server.client() as client:
        whole = client.post("/v1/generate", json=request).json()
        frames = events(client, request | {"stream": True})
    assert frames[-1] == "[DONE]"
    for choice in whole["choices"]:
        deltas = [c for f in frames[:-1] for c in f["choices"] if c["index"] == choice["index"]]
        assert "".join(delta["text"] for delta in deltas) == choice["text"]
        assert deltas[-1]["finish_reason"] == choice["finish_reason"]
        assert all("\N{REPLACEMENT CHARACTER}" not in delta["text"] for delta in deltas[:-1])
    usage = whole["usage"]
    assert frames[-2]["usage"] == usage | {"cached_tokens": usage["prompt_tokens"] - 1}, "the prompt comes again"


def test_a_stop_string_never_leaks(server: RunningServer) -> None:
    with server.client() as client:
        free = client.post("/v1/generate", json={"prompt": "1 2 3 4 5 6", "max_tokens": 24}).json()["choices"][0][
            "text"
        ]
        stop = free[9:12]
        request = {"prompt": "1 2 3 4 5 6", "max_tokens": 24, "stop": [stop]}
        whole = client.post("/v1/generate", json=request).json()["choices"][0]
        frames = events(client, request | {"stream": True})
    assert whole["text"] == free[: free.index(stop)]
    assert (whole["finish_reason"], whole["stop_reason"]) == ("stop", stop)
    assert "".join(choice["text"] for frame in frames[:-1] for choice in frame["choices"]) == whole["text"]


def test_a_killed_engine(server: RunningServer) -> None:
    """Open requests get a 503 or a final error event within 2 seconds; the engine comes back."""
    outcomes: dict[str, tuple[float, Any]] = {}

    def unstreamed() -> None:
        with server.client() as client:
            reply = client.post("/v1/generate", json=ENDLESS)
            outcomes["unstreamed"] = (time.monotonic(), (reply.status_code, reply.headers.get("retry-after")))

    def streamed() -> None:
        with server.client() as client:
            frames = events(client, ENDLESS | {"stream": True})
            outcomes["streamed"] = (time.monotonic(), frames[-2:])

    threads = [threading.Thread(target=unstreamed), threading.Thread(target=streamed)]
    for thread in threads:
        thread.start()
    until(lambda: server.metric("vllm:num_requests_running") == 2, 10, "starting")
    time.sleep(0.5)  # the stream's first token is out
    killed = time.monotonic()
    os.kill(server.engine_pid(), signal.SIGKILL)
    for thread in threads:
        thread.join(10)
    assert all(ended - killed < 2.0 for ended, _ in outcomes.values()), outcomes
    status, retry_after = outcomes["unstreamed"][1]
    assert status == 503
    assert int(retry_after) > 0
    last, done = outcomes["streamed"][1]
    assert last["error"]["code"] == "engine_restarting"
    assert done == "[DONE]"
    with server.client() as client:  # it waits for the engine rather than failing
        assert client.post("/v1/generate", json={"prompt": "Hello", "max_tokens": 3}).status_code == 200


def test_sigterm_lets_running_requests_finish(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", max_position_embeddings=4096)
    small = ("--kv-memory", "64MiB", "--prefix-memory", "4MiB")
    answers: list[httpx.Response] = []
    with running(tmp_path / "store", tmp_path, *small, model=model) as server:
        upload_client = server.client()
        upload(upload_client, "kept", soft_prompt(tmp_path / "kept", 1))
        before = upload_client.post("/v1/generate", json={"prompt": "Hi", "adapter": "kept", "max_tokens": 8}).json()
        request = {"prompt": "Once", "max_tokens": 3000, "ignore_eos": True}

        def ask() -> None:
            with server.client() as client:
                answers.append(client.post("/v1/generate", json=request))

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: busy(server), 10, "starting")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503, 2, "turning unready")
        refused = upload_client.post("/v1/generate", json={"prompt": "Hi"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert not answers, "it finished too early to show anything"
        upload_client.close()
        thread.join(60)
        assert server.process.wait(30) == 0
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 3000
    with running(tmp_path / "store", tmp_path, *small, model=model) as server, server.client() as client:
        after = client.post("/v1/generate", json={"prompt": "Hi", "adapter": "kept", "max_tokens": 8}).json()
        assert after["choices"] == before["choices"]
        assert after["adapter"] == before["adapter"]
        engine = server.engine_pid()
        server.process.kill()
        until(lambda: not Path(f"/proc/{engine}").exists() or zombie(engine), 5, "the engine's own end")


def zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
