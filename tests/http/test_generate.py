"""`POST /v1/generate`: the reply, the stream, what each field does."""

from __future__ import annotations

from tests.fakes import FakeEngine, saying
from tests.http import folders
from tests.http.conftest import Api, MakeApi, events


async def test_whole_reply_has_every_field(api: Api) -> None:
    response = await api.generate(prompt="hello", max_tokens=5, seed=7)
    assert response.status_code == 200
    reply = response.json()
    assert reply["object"] == "text_generation"
    assert reply["model"] == "bytes"
    assert reply["adapter"] is None
    assert reply["seed"] == 7
    assert reply["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "virtual_tokens": 0,
        "cached_tokens": 0,
    }
    assert set(reply["timings"]) == {"queue_ms", "load_ms", "ttft_ms", "total_ms"}
    (choice,) = reply["choices"]
    assert set(choice) == {"index", "text", "finish_reason", "stop_reason"}
    assert len(choice["text"]) == 5
    assert choice["finish_reason"] == "length"
    assert choice["stop_reason"] is None


async def test_streamed_deltas_join_to_the_unstreamed_text(api: Api) -> None:
    body = {"prompt": "hello", "max_tokens": 40, "n": 2, "temperature": 1, "seed": 3}
    whole = (await api.generate(**body)).json()
    response = await api.generate(**body, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *frames, last, done = events(response.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"] | {"cached_tokens": 4}, "the first request computed the prompt"
    assert last["seed"] == 3
    assert "timings" in last
    for choice in whole["choices"]:
        deltas = [d for frame in frames for d in frame["choices"] if d["index"] == choice["index"]]
        assert "".join(d["text"] for d in deltas) == choice["text"]
        assert [d["finish_reason"] for d in deltas if d["finish_reason"]] == ["length"]
    assert whole["choices"][0]["text"] != whole["choices"][1]["text"]


async def test_a_prompt_gives_the_same_alone_and_among_others(api: Api) -> None:
    alone = [await api.text(prompt=p, temperature=1, seed=9, max_tokens=8) for p in ("one", "two")]
    response = await api.generate(prompt=["one", "two"], temperature=1, seed=9, max_tokens=8)
    assert [choice["text"] for choice in response.json()["choices"]] == alone


async def test_several_prompts_times_n_are_indexed_prompt_by_prompt(api: Api) -> None:
    response = await api.generate(prompt=[[104, 105], [106]], n=2, max_tokens=2)
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2, 3]
    assert [stream.tokens for stream in api.engine.submitted] == [(104, 105), (104, 105), (106,), (106,)]


async def test_a_stop_string_ends_the_text_and_the_sequence(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abcdef")))
    response = await api.generate(prompt="x", stop=["cd", "zz"], max_tokens=100)
    (choice,) = response.json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", "cd")
    assert api.engine.running == []
    streamed = await api.generate(prompt="x", stop="cd", max_tokens=100, stream=True)
    frames = events(streamed.text)[:-1]
    assert "".join(d["text"] for frame in frames for d in frame["choices"]) == "ab"


async def test_a_stop_id_is_named_and_is_no_part_of_the_text(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abc"), eos=frozenset((folders.EOS,))))
    response = await api.generate(prompt="x", stop_token_ids=[ord("c")], return_token_ids=True)
    (choice,) = response.json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", ord("c"))
    assert choice["token_ids"] == list(b"abc")


async def test_the_models_own_end_has_no_stop_reason(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(97, folders.EOS), eos=frozenset((folders.EOS,))))
    (choice,) = (await api.generate(prompt="x")).json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "stop", None)


async def test_logprobs_name_the_token_and_the_likeliest(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"ab")))
    response = await api.generate(prompt="x", max_tokens=2, logprobs=2)
    (choice,) = response.json()["choices"]
    assert [(entry["token"], entry["token_id"]) for entry in choice["logprobs"]] == [("a", 97), ("b", 98)]
    assert [entry["token"] for entry in choice["logprobs"][0]["top"]] == ["a", "b"]


async def test_sampling_reaches_the_engine(api: Api) -> None:
    body = {
        "temperature": 0.5, "top_k": -1, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 0.3,
        "frequency_penalty": -0.3, "logit_bias": {"5": 2.5}, "stop_token_ids": [9], "min_tokens": 2, "ignore_eos": True,
        "max_new_tokens": 3,
    }  # fmt: skip
    await api.generate(prompt="x", **body)
    params = api.engine.submitted[0].params
    assert params.max_tokens == 3
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 0, 0.9, 0.1)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.2, 0.3, -0.3)
    assert params.logit_bias == ((5, 2.5),)
    assert (params.stop_token_ids, params.min_tokens, params.ignore_eos) == ((9,), 2, True)


async def test_null_is_the_same_as_absent(api: Api) -> None:
    plain = (await api.generate(prompt="x", seed=1)).json()["choices"]
    names = ("adapter", "messages", "fields", "task", "max_tokens", "temperature", "stop", "logit_bias", "n", "stream")
    nulls = (await api.generate(prompt="x", seed=1, **dict.fromkeys(names))).json()["choices"]
    assert nulls == plain


async def test_default_length_is_256_or_what_the_context_leaves(api: Api) -> None:
    assert len(await api.text(prompt="x")) == 256
    assert len(await api.text(prompt="x" * 1000)) == 24


async def test_messages_are_rendered(api: Api) -> None:
    response = await api.generate(messages=[{"role": "user", "content": "hi"}], max_tokens=1)
    assert response.status_code == 200
    assert api.engine.submitted[0].tokens


async def test_seed_is_drawn_and_told(api: Api) -> None:
    seeds = [(await api.generate(prompt="x", max_tokens=1)).json()["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**63 for seed in seeds)
