"""OpenAI's routes before a real engine: the same answers as POST /v1/generate, and scores that agree."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.e2e.running import RunningServer


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


@pytest.mark.parametrize("model", ["smollm2-135m", "a2", "smollm2-135m:a4"])
def test_a_completion_is_what_generate_says(shared_server: RunningServer, model: str) -> None:
    adapter = None if model == "smollm2-135m" else model.rpartition(":")[2]
    body = {"prompt": "The sea is", "max_tokens": 12, "temperature": 0.8, "seed": 7}
    with shared_server.client() as client:
        ours = post(client, "/v1/generate", adapter=adapter, **body)
        theirs = post(client, "/v1/completions", model=model, **body)
        assert theirs["choices"][0]["text"] == ours["choices"][0]["text"]
        assert theirs["adapter"] == ours["adapter"]
        lines = client.post("/v1/completions", json={"model": model, "stream": True, **body}).text.split("\n\n")
    frames = [json.loads(line.removeprefix("data: ")) for line in lines if line and not line.endswith("[DONE]")]
    assert "".join(c["text"] for frame in frames for c in frame["choices"]) == ours["choices"][0]["text"]


def test_a_chat_is_what_generate_says(shared_server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 10, "temperature": 0}
    with shared_server.client() as client:
        ours = post(client, "/v1/generate", **body)
        theirs = post(client, "/v1/chat/completions", model="smollm2-135m", logprobs=True, top_logprobs=2, **body)
    (choice,) = theirs["choices"]
    assert choice["message"]["content"] == ours["choices"][0]["text"]
    for entry in choice["logprobs"]["content"]:
        assert entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"]), "greedy takes the likeliest"


@pytest.mark.parametrize("model", ["smollm2-135m", "a2"])
def test_an_echoed_continuation_has_the_scores_it_was_drawn_with(shared_server: RunningServer, model: str) -> None:
    with shared_server.client() as client:
        drawn = post(
            client, "/v1/completions", model=model, prompt="One, two,", max_tokens=6, temperature=0, logprobs=1,
            return_token_ids=True,
        )  # fmt: skip
        (first,) = drawn["choices"]
        whole = first["prompt_token_ids"] + first["token_ids"]
        scored = post(client, "/v1/completions", model=model, prompt=whole, max_tokens=0, echo=True, logprobs=1)
    (second,) = scored["choices"]
    assert second["text"].endswith(first["text"])
    told = second["logprobs"]["token_logprobs"][len(first["prompt_token_ids"]) :]
    assert told == pytest.approx(first["logprobs"]["token_logprobs"], abs=1e-4)
    assert second["logprobs"]["tokens"][-6:] == first["logprobs"]["tokens"]
    tops = second["logprobs"]["top_logprobs"][len(first["prompt_token_ids"]) :]
    assert told == [max(top.values()) for top in tops], "lm-eval calls a token greedy where both are the same number"


def test_tokens_are_those_that_are_computed(shared_server: RunningServer) -> None:
    with shared_server.client() as client:
        tokens = post(client, "/tokenize", prompt="Ünïcode, and more", adapter="a0")
        used = post(client, "/v1/completions", model="a0", prompt="Ünïcode, and more", max_tokens=1)["usage"]
        text = post(client, "/detokenize", tokens=tokens["tokens"])
    assert (tokens["count"], tokens["virtual_tokens"]) == (
        used["prompt_tokens"],
        used["prompt_tokens_details"]["virtual_tokens"],
    )
    assert text["prompt"] == "Ünïcode, and more"
