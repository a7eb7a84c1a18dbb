"""`POST /v1/completions`: the shape of its replies, and what its own fields do."""

from __future__ import annotations

import json

import pytest

from tests.fakes import FakeEngine, fake_logprob, saying
from tests.http import folders
from tests.http.conftest import Api, MakeApi
from tests.http.openai.calls import choice, chunks, complete
from tests.http.test_bad_requests import refused


def says(text: str) -> FakeEngine:
    """An engine that says this over and over."""
    return FakeEngine(next_token=saying(*text.encode()))


async def test_the_reply_has_openais_shape(api: Api) -> None:
    response = await complete(api, max_tokens=5, model="bytes")
    reply = response.json()
    assert set(reply) == {"id", "object", "created", "model", "adapter", "choices", "usage"}
    assert reply["id"] == f"cmpl-{response.headers['x-request-id']}"
    assert (reply["object"], reply["model"], reply["adapter"]) == ("text_completion", "bytes", None)
    assert isinstance(reply["created"], int)
    told = choice(response)
    assert len(told.pop("text")) == 5
    assert told == {"index": 0, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert reply["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0, "virtual_tokens": 0},
    }


async def test_sixteen_tokens_at_temperature_one_by_default(api: Api) -> None:
    assert len(choice(await complete(api))["text"]) == 16
    assert api.engine.submitted[0].params.temperature == 1


async def test_it_says_what_the_generate_route_says(api: Api) -> None:
    body = {"temperature": 0.8, "seed": 5, "max_tokens": 9, "top_p": 0.9, "n": 2}
    ours = (await api.generate(prompt=["one", "two"], **body)).json()["choices"]
    theirs = (await complete(api, prompt=["one", "two"], **body)).json()["choices"]
    assert [(c["index"], c["text"]) for c in theirs] == [(c["index"], c["text"]) for c in ours]


@pytest.mark.parametrize("prompt", ["hi", [104, 105], ["hi"], [[104, 105]]])
async def test_every_shape_of_prompt(api: Api, prompt: object) -> None:
    assert (await complete(api, prompt=prompt, max_tokens=1)).status_code == 200
    assert [stream.tokens for stream in api.engine.submitted] == [(104, 105)]


async def test_streamed_chunks_join_to_the_whole_reply(api: Api) -> None:
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 20, "seed": 3}
    whole = (await complete(api, **body)).json()
    told = chunks(await complete(api, **body, stream=True))
    assert all(set(chunk) == {"id", "object", "created", "model", "adapter", "choices"} for chunk in told)
    assert {chunk["object"] for chunk in told} == {"text_completion"}
    assert len({chunk["id"] for chunk in told}) == 1
    for expected in whole["choices"]:
        own = [c for chunk in told for c in chunk["choices"] if c["index"] == expected["index"]]
        assert "".join(c["text"] for c in own) == expected["text"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["length"]


async def test_usage_in_a_stream_where_it_is_asked_for(api: Api) -> None:
    plain = chunks(await complete(api, stream=True, max_tokens=3))
    assert all("usage" not in chunk for chunk in plain)
    *others, last = chunks(await complete(api, stream=True, max_tokens=3, stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in others] == [None] * len(others)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 8)
    options = {"include_usage": True, "continuous_usage_stats": True}
    *others, last = chunks(await complete(api, stream=True, max_tokens=3, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in others]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == 3


async def test_cached_tokens_are_told(api: Api) -> None:
    usages = [(await complete(api, max_tokens=1)).json()["usage"] for _ in range(2)]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, 4]


async def test_logprobs_in_the_legacy_form(make_api: MakeApi) -> None:
    api = await make_api(says("ab"))
    told = choice(await complete(api, max_tokens=3, logprobs=2))["logprobs"]
    assert told == {
        "tokens": ["a", "b", "a"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}, {"a": -0.5, "b": -1.5}],
        "text_offset": [0, 1, 2],
    }
    none = choice(await complete(api, max_tokens=1, logprobs=0))["logprobs"]
    assert none["top_logprobs"] == [{"a": -0.5}], "the token itself is always told"


async def test_a_part_of_a_character_is_told_by_its_bytes(make_api: MakeApi) -> None:
    api = await make_api(says("aé"))
    told = choice(await complete(api, max_tokens=4, logprobs=0))
    assert told["text"] == "aéa"
    assert told["logprobs"]["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "a"]
    assert told["logprobs"]["text_offset"] == [0, 1, 1, 2]


async def test_echo_begins_with_the_prompt_and_its_logprobs(make_api: MakeApi) -> None:
    api = await make_api(says("xy"))
    told = choice(await complete(api, prompt="hey", echo=True, logprobs=1, max_tokens=2))
    assert told["text"] == "heyxy"
    logprobs = told["logprobs"]
    assert logprobs["tokens"] == list("heyxy")
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    scores = [fake_logprob(ord("e"), b"h"), fake_logprob(ord("y"), b"he")]
    assert logprobs["token_logprobs"] == [None, *scores, -0.5, -0.5]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1] == {"e": scores[0]}


async def test_echo_scores_a_prompt_and_writes_nothing(api: Api) -> None:
    told = choice(await complete(api, prompt="hey", echo=True, logprobs=0, max_tokens=0))
    assert (told["text"], told["finish_reason"]) == ("hey", "length")
    assert len(told["logprobs"]["token_logprobs"]) == 3
    bare = await complete(api, prompt="hey", echo=True, max_tokens=0)
    assert (choice(bare)["text"], bare.json()["usage"]["completion_tokens"]) == ("hey", 0)
    refused(await complete(api, max_tokens=0), 400, "invalid_request", "max_tokens")


async def test_echo_in_a_stream_joins_to_the_whole(make_api: MakeApi) -> None:
    api = await make_api(says("xyé"))
    body = {"prompt": ["hey", "ho"], "echo": True, "logprobs": 1, "max_tokens": 4}
    whole = (await complete(api, **body)).json()
    told = chunks(await complete(api, **body, stream=True))
    for expected in whole["choices"]:
        own = [c for chunk in told for c in chunk["choices"] if c["index"] == expected["index"]]
        assert "".join(c["text"] for c in own) == expected["text"]
        for name, items in expected["logprobs"].items():
            assert [item for c in own for item in c["logprobs"][name]] == items


async def test_a_scored_prompt_in_a_stream(api: Api) -> None:
    first, last = chunks(await complete(api, prompt="hey", echo=True, logprobs=0, max_tokens=0, stream=True))
    assert first["choices"][0]["text"] == "hey"
    assert len(first["choices"][0]["logprobs"]["tokens"]) == 3
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("", "length")


async def test_echo_shows_special_tokens_where_they_are_shown(api: Api) -> None:
    ids = [folders.EOS, ord("a")]
    hidden = choice(await complete(api, prompt=ids, echo=True, max_tokens=1, logprobs=0))
    shown = choice(await complete(api, prompt=ids, echo=True, max_tokens=1, logprobs=0, skip_special_tokens=False))
    assert hidden["text"][0] == "a"
    assert hidden["logprobs"]["text_offset"] == [0, 0, 1]
    assert shown["text"].startswith("<|im_end|>a")
    assert shown["logprobs"]["text_offset"] == [0, 10, 11]


async def test_an_echoed_prompt_leaves_virtual_tokens_out(api: Api) -> None:
    await api.publish("form", folders.templated("{v:0-1}Say {text}{v:2-3}."))
    told = choice(await complete(api, model="form", prompt="hi", echo=True, logprobs=0, max_tokens=1))
    assert told["text"][:-1] == "Say hi."
    assert len(told["logprobs"]["tokens"]) == len("Say hi.") + 1


async def test_prompt_logprobs_as_vllm_tells_them(api: Api) -> None:
    told = choice(await complete(api, prompt="hey", prompt_logprobs=2, max_tokens=1))
    first, second, _ = told["prompt_logprobs"]
    assert first is None
    score = fake_logprob(ord("e"), b"h")
    assert second == {
        str(ord("e")): {"logprob": score, "rank": 1, "decoded_token": "e"},
        str(ord("f")): {"logprob": score - 1, "rank": 2, "decoded_token": "f"},
    }
    alone = choice(await complete(api, prompt="hey", prompt_logprobs=0, max_tokens=0))
    assert alone["prompt_logprobs"][1] == {str(ord("e")): {"logprob": score, "rank": None, "decoded_token": "e"}}


async def test_each_asks_for_as_many_of_the_likeliest_as_it_wants(api: Api) -> None:
    body = {"prompt": "hey", "echo": True, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 1}
    told = choice(await complete(api, **body))
    assert len(told["prompt_logprobs"][1]) == 3
    assert len(told["logprobs"]["top_logprobs"][1]) == 1


async def test_token_ids_are_told(make_api: MakeApi) -> None:
    api = await make_api(says("ab"))
    told = choice(await complete(api, prompt="hi", return_token_ids=True, max_tokens=2))
    assert (told["prompt_token_ids"], told["token_ids"]) == ([104, 105], [97, 98])
    first, *others = chunks(await complete(api, prompt="hi", return_token_ids=True, max_tokens=2, stream=True))
    assert first["choices"][0]["prompt_token_ids"] == [104, 105]
    assert [token for chunk in others for token in chunk["choices"][0]["token_ids"]] == [97, 98]


async def test_a_stop_is_told(make_api: MakeApi) -> None:
    api = await make_api(says("abcdef"))
    told = choice(await complete(api, stop=["cd"], max_tokens=100))
    assert (told["text"], told["finish_reason"], told["stop_reason"]) == ("ab", "stop", "cd")
    kept = choice(await complete(api, stop=["cd"], max_tokens=100, include_stop_str_in_output=True))
    assert kept["text"] == "abcd"
    by_id = choice(await complete(api, stop_token_ids=[99], max_tokens=100))
    assert (by_id["text"], by_id["stop_reason"]) == ("ab", 99)


async def test_time_that_runs_out_in_a_stream_is_length(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(step_seconds=0.02))
    told = chunks(await complete(api, stream=True, max_tokens=500, timeout_s=0.1))
    last = told[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("length", "timeout")
    refused(await complete(api, max_tokens=500, timeout_s=0.1), 408, "timeout", None)


async def test_a_prompt_that_the_engine_never_came_to_is_echoed_without_scores(make_api: MakeApi) -> None:
    engine = FakeEngine(step_seconds=0.02)
    engine.waits = frozenset({1})
    api = await make_api(engine)
    body = {"prompt": ["hey", "you"], "echo": True, "logprobs": 1, "max_tokens": 500, "timeout_s": 0.2}
    told = [chunk["choices"][0] for chunk in chunks(await complete(api, **body, stream=True))]
    first, last = [choice for choice in told if choice["index"] == 1]
    assert (first["text"], first["logprobs"]["tokens"]) == ("you", ["y", "o", "u"])
    assert first["logprobs"]["token_logprobs"] == [None, None, None]
    assert (last["text"], last["stop_reason"]) == ("", "timeout")


async def test_an_error_on_the_way_is_an_event(make_api: MakeApi) -> None:
    engine = FakeEngine()
    engine.fail_after = 2
    api = await make_api(engine)
    *_, error = chunks(await complete(api, stream=True, max_tokens=9))
    assert set(error) == {"error"}
    assert error["error"]["code"] == "engine_error"
    refused(await complete(api, max_tokens=9), 500, "engine_error", None)


async def test_infinity_is_a_number_that_json_has(make_api: MakeApi) -> None:
    class Never(FakeEngine):
        def _event(self, stream, token):  # type: ignore[no-untyped-def]
            event = super()._event(stream, token)
            return type(event)(event.sequence, token, event.finish, float("-inf"), ((token, float("-inf")),))

    api = await make_api(Never())
    told = choice(await complete(api, max_tokens=1, logprobs=1))["logprobs"]
    assert told["token_logprobs"] == [-9999.0]
    assert "Infinity" not in json.dumps(told)


async def test_template_fields_are_filled(api: Api) -> None:
    await api.publish("form", folders.templated("{v:0-3}Say {text} in {place}."))
    response = await complete(api, prompt=None, model="form", fields={"text": "a", "place": "b"})
    assert response.status_code == 200
    assert response.json()["usage"]["prompt_tokens_details"]["virtual_tokens"] == 4
    refused(await complete(api, model="form", fields={"text": "a"}), 400, "invalid_request", "prompt")
