"""A crowd over many adapters gets the same answers as each request alone (float32)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.running import RunningServer

QUESTIONS = ["What is the capital of France?", "Tell me about the sea.", "List three fruits:", "Why is the sky blue?"]


def body(number: int) -> dict[str, Any]:
    """Request `number` of the crowd: sixteen adapters and the base model in turn, half of them sampled."""
    choice = number % 17
    request: dict[str, Any] = {"prompt": QUESTIONS[number % 4] + " " * (number % 3), "max_tokens": 3 + number % 3}
    if choice < 16:
        request["adapter"] = "long" if choice == 15 else f"a{choice}"
    if choice in (1, 7):  # multitask prompt tuning
        request["task"] = number % 2
    if choice == 13:
        request["task"] = 1
    if number % 2:
        request |= {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": number}
    return request


def ask(server: RunningServer, request: dict[str, Any]) -> dict[str, Any]:
    with server.client() as client:
        reply = client.post("/v1/generate", json=request | {"return_token_ids": True})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_sixty_four_at_once_answer_as_each_alone(shared_server: RunningServer) -> None:
    requests = [body(number) for number in range(64)]
    alone = [ask(shared_server, request) for request in requests]
    with ThreadPoolExecutor(64) as crowd:
        together = list(crowd.map(lambda request: ask(shared_server, request), requests))
    for request, one, other in zip(requests, alone, together, strict=True):
        assert one["choices"] == other["choices"], request
        assert one["adapter"] == other["adapter"]
    below_two = shared_server.metric("waybill_batch_kinds_bucket", le="2.0")
    assert shared_server.metric("waybill_batch_kinds_count") > below_two


def test_a_long_cartridge_is_held_once(shared_server: RunningServer) -> None:
    request = {"prompt": "The", "adapter": "long", "max_tokens": 3}
    alone = ask(shared_server, request)
    used: list[float] = []
    running: list[float] = []
    with ThreadPoolExecutor(64) as crowd:
        pending = [crowd.submit(ask, shared_server, request) for _ in range(64)]
        while not all(future.done() for future in pending):
            used.append(shared_server.metric("waybill_kv_blocks_used"))
            running.append(shared_server.metric("vllm:num_requests_running"))
        answers = [future.result() for future in pending]
    # Other adapters may be resident; a block for each sequence's own tokens, and the cartridge's sixteen once. Held by
    # every sequence they would be over a thousand.
    prefixes = shared_server.metric("waybill_prefix_blocks_used")
    assert max(running) > 16
    assert max(used) <= prefixes + 64
    assert all(answer["choices"] == alone["choices"] for answer in answers)
    assert all(answer["usage"]["virtual_tokens"] == 1024 for answer in answers)
