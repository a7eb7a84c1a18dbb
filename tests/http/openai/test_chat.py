"""`POST /v1/chat/completions`: the shape of its replies, and what its own fields do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import FakeEngine, fake_logprob, saying
from tests.http import folders
from tests.http.conftest import Api, MakeApi
from tests.http.openai.calls import HELLO, chat, choice, chunks
from tests.http.test_bad_requests import refused

RENDERED = b"\x01user\nhello\x00\n\x01assistant\n"


def ids(text: bytes) -> tuple[int, ...]:
    """Token ids, with 1 and 0 for the special tokens that begin and end a turn."""
    return tuple({1: folders.BOS, 0: folders.EOS}.get(byte, byte) for byte in text)


async def test_the_reply_has_openais_shape(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"ab")))
    response = await chat(api, max_tokens=3)
    reply = response.json()
    assert set(reply) == {"id", "object", "created", "model", "adapter", "choices", "usage"}
    assert reply["id"] == f"chatcmpl-{response.headers['x-request-id']}"
    assert (reply["object"], reply["model"], reply["adapter"]) == ("chat.completion", "bytes", None)
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "aba", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert reply["usage"]["prompt_tokens"] == len(RENDERED)


async def test_messages_are_rendered_by_the_template(api: Api) -> None:
    await chat(api, max_tokens=1)
    assert api.engine.submitted[0].tokens == ids(RENDERED)


@pytest.mark.parametrize(
    ("message", "same_as"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "user", "content": "x"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
            {"role": "user", "content": "xy"},
        ),
        (
            {
                "role": "assistant",
                "content": "x",
                "refusal": None,
                "tool_calls": None,
                "annotations": [],
                "audio": None,
            },
            {"role": "assistant", "content": "x"},
        ),
    ],
)
async def test_shapes_of_one_message(api: Api, message: dict[str, Any], same_as: dict[str, Any]) -> None:
    for sent in (message, same_as):
        assert (await chat(api, messages=[sent, *HELLO], max_tokens=1)).status_code == 200
    first, second = api.engine.submitted
    assert first.tokens == second.tokens


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": "x", "name": "me"}, "messages.0.name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages.0.tool_calls"),
        ({"role": "assistant", "content": None}, "messages.0.content"),
    ],
)
async def test_messages_that_a_text_model_does_not_take(api: Api, message: dict[str, Any], param: str) -> None:
    refused(await chat(api, messages=[message]), 400, "invalid_request", param)


async def test_it_says_what_the_generate_route_says(api: Api) -> None:
    body = {"messages": HELLO, "temperature": 0.8, "seed": 5, "max_tokens": 9, "n": 2}
    ours = (await api.generate(**body)).json()["choices"]
    theirs = (await chat(api, **body)).json()["choices"]
    assert [c["message"]["content"] for c in theirs] == [c["text"] for c in ours]


async def test_an_answer_may_fill_what_the_context_leaves(api: Api) -> None:
    told = choice(await chat(api))
    assert len(told["message"]["content"]) == 1024 - len(RENDERED)
    assert len(choice(await chat(api, max_completion_tokens=3))["message"]["content"]) == 3
    refused(await chat(api, max_tokens=3, max_completion_tokens=4), 400, "invalid_request", "max_completion_tokens")
    too_long = await chat(api, max_completion_tokens=2000)
    refused(too_long, 400, "context_length_exceeded", "max_completion_tokens")


async def test_the_chunks_of_a_stream(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"ab")))
    told = chunks(await chat(api, stream=True, max_tokens=3))
    assert {chunk["object"] for chunk in told} == {"chat.completion.chunk"}
    first, *middle, last = [chunk["choices"][0] for chunk in told]
    assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(c["delta"]["content"] for c in middle) == "aba"
    assert all(c["finish_reason"] is None for c in (first, *middle))
    assert (last["delta"], last["finish_reason"]) == ({}, "length")


async def test_streamed_choices_join_to_the_whole(api: Api) -> None:
    body = {"n": 3, "max_tokens": 20, "seed": 3}
    whole = (await chat(api, **body)).json()
    told = chunks(await chat(api, **body, stream=True, stream_options={"include_usage": True}))
    assert told[-1]["usage"] | {"prompt_tokens_details": None} == whole["usage"] | {"prompt_tokens_details": None}
    for expected in whole["choices"]:
        own = [c for chunk in told for c in chunk["choices"] if c["index"] == expected["index"]]
        assert "".join(c["delta"].get("content", "") for c in own) == expected["message"]["content"]
        assert [c["delta"]["role"] for c in own if "role" in c["delta"]] == ["assistant"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["length"]


async def test_logprobs_tell_tokens_and_their_bytes(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*"aé".encode())))
    body = {"max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    told = choice(await chat(api, **body))["logprobs"]["content"]
    assert told[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -1.5, "bytes": [98]},
        ],
    }
    assert [entry["bytes"] for entry in told[1:]] == [[0xC3], [0xA9]]
    streamed = chunks(await chat(api, **body, stream=True))
    parts = [c["logprobs"]["content"] for chunk in streamed for c in chunk["choices"] if c["logprobs"]]
    assert [entry for part in parts for entry in part] == told
    bare = choice(await chat(api, max_tokens=1, logprobs=True))["logprobs"]["content"]
    assert bare[0]["top_logprobs"] == []


async def test_prompt_logprobs_and_ids_are_told_once(api: Api) -> None:
    reply = (await chat(api, max_tokens=1, n=2, prompt_logprobs=1, return_token_ids=True)).json()
    assert tuple(reply["prompt_token_ids"]) == ids(RENDERED)
    assert reply["prompt_logprobs"][0] is None
    score = fake_logprob(ord("u"), ids(RENDERED[:1]))
    assert reply["prompt_logprobs"][1] == {"117": {"logprob": score, "rank": 1, "decoded_token": "u"}}
    assert all(len(c["token_ids"]) == 1 for c in reply["choices"])


async def test_a_conversation_with_an_adapter(api: Api) -> None:
    card = (await api.publish("soft", folders.soft_prompt())).json()
    response = await chat(api, model="soft", max_tokens=2)
    reply = response.json()
    assert (reply["model"], reply["adapter"]["digest"]) == ("soft", card["digest"])
    assert response.headers["x-adapter-digest"] == card["digest"]
    assert reply["usage"]["prompt_tokens_details"]["virtual_tokens"] == 4
    await api.publish("form", folders.templated("{v:0-3}Say {text}."))
    refused(await chat(api, model="form"), 400, "invalid_request", "messages")


async def test_nulls_are_the_same_as_absent(api: Api) -> None:
    names = (
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "metadata", "modalities", "model", "n", "parallel_tool_calls", "prediction", "presence_penalty",
        "prompt_cache_key", "reasoning_effort", "response_format", "safety_identifier", "service_tier", "stop", "store",
        "stream", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
        "web_search_options",
    )  # fmt: skip
    plain = choice(await chat(api, seed=1))
    assert choice(await chat(api, seed=1, **dict.fromkeys(names))) == plain
