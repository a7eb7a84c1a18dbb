"""How text is read and told: fields of `POST /v1/generate` that all generating routes share."""

from __future__ import annotations

from pathlib import Path

from server.service.tenants import add_key
from tests.fakes import FakeEngine, saying
from tests.http import folders
from tests.http.conftest import Api, MakeApi, events
from tests.http.test_bad_requests import refused


async def test_the_last_tokens_of_each_prompt_are_kept(api: Api) -> None:
    response = await api.generate(prompt=["hello", "ab"], truncate_prompt_tokens=3, max_tokens=1)
    assert response.json()["usage"]["prompt_tokens"] == 5
    await api.generate(prompt=[[1, 2, 3, 4]], truncate_prompt_tokens=3, max_tokens=1)
    assert [stream.tokens for stream in api.engine.submitted] == [tuple(b"llo"), tuple(b"ab"), (2, 3, 4)]


async def test_a_cut_prompt_fits_where_the_whole_would_not(api: Api) -> None:
    await api.publish("soft", folders.soft_prompt(24))
    body = {"prompt": "x" * 5000, "max_tokens": 100, "adapter": "soft"}
    refused(await api.generate(**body), 400, "context_length_exceeded", "prompt")
    assert (await api.generate(**body, truncate_prompt_tokens=900)).status_code == 200
    refused(await api.generate(**body, truncate_prompt_tokens=901), 400, "context_length_exceeded", "max_tokens")
    (stream,) = api.engine.submitted
    assert (len(stream.tokens), stream.adapter and stream.adapter.prefix_len) == (900, 24)


async def test_a_template_is_not_cut(api: Api) -> None:
    await api.publish("form", folders.templated("{v:0-3}Say {text}."))
    response = await api.generate(prompt="hello", adapter="form", truncate_prompt_tokens=3)
    refused(response, 400, "invalid_request", "truncate_prompt_tokens")


async def test_bos_is_added_or_not(make_api: MakeApi) -> None:
    api = await make_api(bos=True)
    for body in ({}, {"add_special_tokens": False}, {"truncate_prompt_tokens": 2}):
        await api.generate(prompt="hey", max_tokens=1, **body)
    told = [stream.tokens for stream in api.engine.submitted]
    assert told == [(folders.BOS, *b"hey"), tuple(b"hey"), (folders.BOS, *b"y")]


async def test_special_tokens_are_shown_or_not(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(ord("a"), folders.BOS, ord("b"))))
    assert await api.text(prompt="x", max_tokens=3) == "ab"
    assert await api.text(prompt="x", max_tokens=3, skip_special_tokens=False) == "a<|im_start|>b"
    streamed = await api.generate(prompt="x", max_tokens=3, skip_special_tokens=False, stream=True)
    texts = [d["text"] for frame in events(streamed.text)[:-1] for d in frame["choices"]]
    assert "".join(texts) == "a<|im_start|>b"
    stopped = await api.generate(prompt="x", max_tokens=9, skip_special_tokens=False, stop="<|im_start|>")
    assert stopped.json()["choices"][0]["text"] == "a"


async def test_what_ended_the_text_may_stay_in_it(make_api: MakeApi) -> None:
    ends = FakeEngine(next_token=saying(*b"ab", folders.EOS), eos=frozenset((folders.EOS,)))
    api = await make_api(ends)
    kept = {"include_stop_str_in_output": True}
    assert await api.text(prompt="x", stop="b") == "a"
    assert await api.text(prompt="x", stop="b", **kept) == "ab"
    assert await api.text(prompt="x", stop_token_ids=[98]) == "a"
    assert await api.text(prompt="x", stop_token_ids=[98], **kept) == "ab"
    assert await api.text(prompt="x", **kept) == "ab", "the model's own end is a special token"
    assert await api.text(prompt="x", skip_special_tokens=False) == "ab"
    assert await api.text(prompt="x", skip_special_tokens=False, **kept) == "ab<|im_end|>"
    streamed = await api.generate(prompt="x", stop="b", stream=True, **kept)
    assert "".join(d["text"] for frame in events(streamed.text)[:-1] for d in frame["choices"]) == "ab"


async def test_a_salt_keeps_caches_of_one_tenant_apart(make_api: MakeApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    headers = [{"Authorization": f"Bearer {add_key(keys, tenant)}"} for tenant in ("acme", "rival")]
    api = await make_api(keys=keys)
    cached = []
    for who, salt in ((0, None), (0, None), (0, "s"), (0, "s"), (0, "t"), (1, "s"), (1, None)):
        body = {"prompt": "hello", "max_tokens": 1, "cache_salt": salt}
        response = await api.client.post("/v1/generate", json=body, headers=headers[who])
        cached.append(response.json()["usage"]["cached_tokens"])
    assert cached == [0, 4, 0, 4, 0, 0, 0]


async def test_a_salt_cannot_be_spelled_as_a_tenant(api: Api) -> None:
    for salt in ("", "a/b", "a@b", "a\\b", "a\0b", "é", "x" * 129, "a b"):
        refused(await api.generate(prompt="x", cache_salt=salt), 400, "invalid_request", "cache_salt")
