"""Sampled JSON of the real base model and the shipped adapters parses and validates; the short form of the proof."""

from __future__ import annotations

import json

import pytest

from tests.e2e.running import RunningServer
from tests.e2e.structured import ask_many


def test_sampled_json_is_valid(shipped: RunningServer) -> None:
    answers = ask_many(shipped, 12)
    assert [answer.finish for answer in answers] == ["stop"] * 12
    assert [answer.fault for answer in answers] == [""] * 12


def test_a_grammar_that_fails_in_the_engine_is_a_bad_request(shipped: RunningServer) -> None:
    """It can be read, but no text matches it, which shows where the vocabulary is known."""
    body = {"prompt": "x", "max_tokens": 4, "structured_outputs": {"regex": "a[^\\s\\S]"}}
    with shipped.client() as client:
        refused = client.post("/v1/generate", json=body)
        assert client.post("/v1/generate", json={"prompt": "x", "max_tokens": 4}).status_code == 200
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] == "invalid_request"
    assert "no text matches" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ({"choice": ["positive", "negative"]}, {"positive", "negative"}),
        ({"regex": "(yes|no), (sir|madam)"}, {"yes, sir", "yes, madam", "no, sir", "no, madam"}),
        ({"grammar": 'root ::= "<" word ">"\nword ::= "a" | "b"'}, {"<a>", "<b>"}),
    ],
)
def test_other_structures(shipped: RunningServer, asked: dict[str, object], texts: set[str]) -> None:
    body = {"prompt": "Well:", "n": 4, "temperature": 1, "max_tokens": 20, "structured_outputs": asked}
    with shipped.client() as client:
        reply = client.post("/v1/generate", json=body).json()
    assert {choice["text"] for choice in reply["choices"]} <= texts
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"stop"}


def test_a_stream_joins_to_the_same_text(shipped: RunningServer) -> None:
    body = {"prompt": "JSON:", "temperature": 1, "seed": 4, "max_tokens": 300}
    body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": {"enum": [["é", 1]]}}}}
    with shipped.client() as client:
        whole = client.post("/v1/generate", json=body).json()["choices"][0]["text"]
        streamed = client.post("/v1/generate", json=body | {"stream": True}).text
    frames = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(choice["text"] for frame in frames for choice in frame["choices"]) == whole
    assert json.loads(whole) == ["é", 1]
