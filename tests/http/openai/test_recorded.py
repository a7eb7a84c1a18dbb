"""Requests in the shapes that known clients send, as their sources write them, are answered as those clients read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import FakeEngine, saying
from tests.http import folders
from tests.http.conftest import Api, MakeApi
from tests.http.openai.calls import chunks

GUIDELLM_TEXT = {
    "model": "bytes",
    "prompt": "The quick brown fox",
    "max_tokens": 5,
    "stop": None,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
GUIDELLM_CHAT = {
    "model": "bytes",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "The quick brown fox"}]}],
    "max_completion_tokens": 5,
    "stop": None,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
VLLM_BENCH = {
    "model": "bytes",
    "prompt": "The quick brown fox",
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 5,
    "logprobs": None,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}
VLLM_BENCH_CHAT = {
    "model": "bytes",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "The quick brown fox"}]}],
    "max_completion_tokens": 5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.0,
    "ignore_eos": True,
}


@pytest.mark.parametrize("body", [GUIDELLM_TEXT, VLLM_BENCH], ids=["guidellm", "vllm"])
async def test_benchmarks_of_completions(make_api: MakeApi, body: dict[str, Any]) -> None:
    api = await make_api(FakeEngine(next_token=saying(folders.EOS, *b"abc"), eos=frozenset((folders.EOS,))))
    told = chunks(await api.client.post("/v1/completions", json=body))
    texts = [chunk["choices"][0]["text"] for chunk in told if chunk["choices"]]
    assert "".join(texts) == "abc"
    usage = told[-1]["usage"]
    assert (told[-1]["choices"], usage["prompt_tokens"], usage["completion_tokens"]) == ([], 19, 5)


@pytest.mark.parametrize("body", [GUIDELLM_CHAT, VLLM_BENCH_CHAT], ids=["guidellm", "vllm"])
async def test_benchmarks_of_chat(make_api: MakeApi, body: dict[str, Any]) -> None:
    api = await make_api(FakeEngine(next_token=saying(folders.EOS, *b"abc"), eos=frozenset((folders.EOS,))))
    told = chunks(await api.client.post("/v1/chat/completions", json=body))
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in told if chunk["choices"]]
    assert "".join(text for text in texts if text) == "abc"
    assert told[-1]["usage"]["completion_tokens"] == 5


async def test_a_benchmark_over_many_adapters_names_them_as_models(api: Api) -> None:
    for name in ("one", "two"):
        await api.publish(name, folders.soft_prompt(value=len(name)))
        told = chunks(await api.client.post("/v1/completions", json={**VLLM_BENCH, "model": name}))
        assert {chunk["adapter"]["name"] for chunk in told} == {name}


async def test_lm_eval_scores_a_batch_of_ids_and_needs_no_more_than_it_reads(api: Api) -> None:
    """`local-completions` cuts off the context and the one token that it had to ask for, and compares with the best."""
    context, answer = list(b"Q: 1+1? A:"), list(b" two")
    body = {
        "model": "bytes",
        "prompt": [context + answer, context + list(b" 3")],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    reply = (await api.client.post("/v1/completions", json=body)).json()
    scored = []
    for told in sorted(reply["choices"], key=lambda c: c["index"]):
        tokens = told["logprobs"]["token_logprobs"][len(context) : -1]
        tops = told["logprobs"]["top_logprobs"][len(context) : -1]
        greedy = all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
        scored.append((len(tokens), sum(tokens), greedy))
    assert [count for count, _, _ in scored] == [4, 2]
    assert all(total < 0 and greedy for _, total, greedy in scored)


async def test_lm_eval_reads_the_tokenizer_from_here(api: Api) -> None:
    info = (await api.client.get("/tokenizer_info")).json()
    asked = await api.client.post("/tokenize", json={"prompt": info["eos_token"], "add_special_tokens": False})
    assert asked.json()["tokens"] == [folders.EOS]
    back = await api.client.post("/detokenize", json={"tokens": asked.json()["tokens"]})
    assert back.json()["prompt"] == info["eos_token"]


async def test_langchain_sends_what_it_does_not_know_as_null(api: Api) -> None:
    body = {
        "model": "bytes",
        "prompt": ["hi"],
        "temperature": 0.7,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "logit_bias": {},
        "max_tokens": 4,
        "seed": None,
        "logprobs": None,
        "best_of": None,
        "suffix": None,
        "user": None,
    }
    assert (await api.client.post("/v1/completions", json=body)).status_code == 200


async def test_a_client_that_chats_by_url_alone_names_a_placeholder(api: Api) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for name in ("tgi", "dummy"):
        body = {"model": name, "messages": messages, "max_tokens": 2, "stream": False, "tools": None}
        reply = (await api.client.post("/v1/chat/completions", json=body)).json()
        assert (reply["adapter"], reply["model"]) == (None, name)
