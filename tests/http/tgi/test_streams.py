"""Streams of TGI's and LoRAX's routes: an event for every token, and nothing behind the last."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import FakeEngine, saying
from tests.http import folders
from tests.http.conftest import MakeApi
from tests.http.tgi.calls import events, joined, post, streamed, whole


def texts(told: list[dict[str, Any]]) -> list[str]:
    """The text of every token."""
    return [event["token"]["text"] for event in told]


async def test_every_token_is_an_event_and_the_last_has_the_text(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abc")))
    told = await streamed(api, "hey", max_new_tokens=2, details=True)
    token = {"logprob": -0.5, "special": False, "skipped": False}
    assert told == [
        {"index": 1, "token": {"id": 97, "text": "a", **token}, "generated_text": None, "details": None},
        {
            "index": 2,
            "token": {"id": 98, "text": "b", **token},
            "generated_text": "ab",
            "details": {
                "finish_reason": "length",
                "input_length": 3,
                "prompt_tokens": 3,
                "generated_tokens": 2,
                "seed": None,
                "adapter": None,
            },
        },
    ]


async def test_details_come_where_asked_only(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abc")))
    told = await streamed(api, max_new_tokens=2)
    assert [(event["generated_text"], event["details"]) for event in told] == [(None, None), ("ab", None)]


async def test_the_root_route_streams_where_asked(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abc")))
    response = await post(api, "/", stream=True, max_new_tokens=3)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events(response.text) == await streamed(api, max_new_tokens=3)


async def test_a_long_stream_from_a_socket_says_what_the_whole_reply_says(make_api: MakeApi) -> None:
    api = await make_api(listen=True)
    told = await streamed(api, do_sample=True, seed=5, max_new_tokens=300)
    reply = await whole(api, do_sample=True, seed=5, max_new_tokens=300, details=True)
    assert [event["index"] for event in told] == list(range(1, 301))
    assert [event["token"] for event in told] == reply["details"]["tokens"]
    assert joined([event["token"] for event in told]) == told[-1]["generated_text"] == reply["generated_text"]


async def test_the_token_that_completes_a_character_has_it(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*"é€😀".encode())))
    told = await streamed(api, max_new_tokens=9)
    assert texts(told) == ["", "é", "", "", "€", "", "", "", "😀"]
    assert told[-1]["generated_text"] == "é€😀"


async def test_a_character_that_stays_torn_is_told_by_the_last_token(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*"a😀".encode())))
    told = await streamed(api, max_new_tokens=3)
    assert texts(told) == ["a", "", "\ufffd"]
    assert told[-1]["generated_text"] == "a\ufffd"
    reply = await whole(api, max_new_tokens=3, details=True)
    assert [token["text"] for token in reply["details"]["tokens"]] == ["a", "", "\ufffd"]


@pytest.mark.parametrize("stop", ["cd", "a", "abcdef"])
async def test_a_stop_string_shows_as_it_comes(make_api: MakeApi, stop: str) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abcdef")))
    told = await streamed(api, stop=[stop], details=True)
    expected = b"abcdef"[: b"abcdef".index(stop.encode()) + len(stop)]
    assert texts(told) == [chr(byte) for byte in expected]
    assert told[-1]["generated_text"] == expected.decode()
    assert told[-1]["details"]["finish_reason"] == "stop_sequence"
    assert api.engine.running == []


async def test_the_end_of_sequence_is_an_event(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(97, folders.EOS), eos=frozenset((folders.EOS,))))
    told = await streamed(api, details=True)
    assert texts(told) == ["a", "<|im_end|>"]
    assert [event["token"]["special"] for event in told] == [False, True]
    assert (told[-1]["generated_text"], told[-1]["details"]["finish_reason"]) == ("a", "eos_token")


async def test_the_likeliest_come_with_each_event(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"ab")))
    told = await streamed(api, max_new_tokens=2, top_n_tokens=2, return_k_alternatives=1)
    assert [[entry["text"] for entry in event["top_tokens"]] for event in told] == [["a", "b"], ["b", "c"]]
    assert [event["token"]["alternative_tokens"][0]["text"] for event in told] == ["a", "b"]


async def test_the_prompt_comes_before_the_whole_text_only(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"ab")))
    told = await streamed(api, "hey ", max_new_tokens=2, return_full_text=True)
    assert texts(told) == ["a", "b"]
    assert told[-1]["generated_text"] == "hey ab"


async def test_an_adapters_stream_names_it(make_api: MakeApi) -> None:
    api = await make_api()
    card = (await api.publish("pirate", folders.prefix(4))).json()
    response = await post(api, "/generate_stream", adapter_id="pirate", details=True, max_new_tokens=2)
    assert response.headers["x-adapter-digest"] == card["digest"]
    assert (response.headers["x-adapter-id"], response.headers["x-prompt-tokens"]) == ("pirate", "1")
    *_, last = events(response.text)
    assert last["details"]["adapter"]["digest"] == card["digest"]


async def test_an_error_on_the_way_is_the_last_event(make_api: MakeApi) -> None:
    api = await make_api()
    api.engine.fail_after = 2
    *told, error = await streamed(api)
    assert [event["index"] for event in told] == [1, 2]
    assert error == {"error": "the engine failed on this request", "error_type": "generation"}
    assert api.engine.running == []


async def test_an_engine_that_dies_on_the_way_is_told_as_overload(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(step_seconds=0.01), listen=True)
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1000}}
    async with api.client.stream("POST", "/generate_stream", json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        api.engine.die()
        rest = [line async for line in lines if line]
    assert events(rest[-1] + "\n\n")[0]["error_type"] == "overloaded"
