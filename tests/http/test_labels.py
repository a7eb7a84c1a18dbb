"""`labels` of `POST /v1/generate`: what is asked of the engine, what comes of its numbers, and what is refused."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from server.api.schemas import BESIDE_LABELS, GenerateRequest
from server.core import SamplingParams, Scoring
from tests.fakes import FakeEngine, fake_logprob
from tests.http import folders
from tests.http.conftest import Api, MakeApi, until
from tests.http.test_bad_requests import refused

LABELS = ["yes", "no", "n", "maybe", "m"]
DRAWS_NOTHING = SamplingParams(max_tokens=0)


def total(prompt: bytes | list[int], label: str) -> float:
    """What the fake engine says of a label, a byte at a time."""
    tokens = list(prompt)
    logprob = 0.0
    for byte in label.encode():
        logprob += fake_logprob(byte, tokens)
        tokens.append(byte)
    return logprob


def require(choice: dict[str, Any], prompt: bytes | list[int], labels: list[str]) -> None:
    sums = [total(prompt, label) for label in labels]
    told = choice["labels"]
    assert [score["label"] for score in told] == labels
    assert [score["logprob"] for score in told] == pytest.approx(sums)
    mass = sum(math.exp(logprob) for logprob in sums)
    assert [score["probability"] for score in told] == pytest.approx([math.exp(p) / mass for p in sums])
    assert [score["num_tokens"] for score in told] == [len(label) for label in labels]
    assert (choice["text"], choice["finish_reason"]) == (labels[sums.index(max(sums))], "stop")


async def test_each_label_has_the_sum_of_its_tokens_and_the_greatest_is_the_answer(api: Api) -> None:
    reply = (await api.generate(prompt="is it? ", labels=LABELS)).json()
    (choice,) = reply["choices"]
    require(choice, b"is it? ", LABELS)
    assert (choice["index"], choice["stop_reason"]) == (0, None)
    assert reply["usage"]["prompt_tokens"] == 7
    assert reply["usage"]["completion_tokens"] == len(choice["text"])


async def test_one_sequence_scores_all_first_tokens_and_only_longer_labels_take_another(api: Api) -> None:
    await api.generate(prompt="is it? ", labels=LABELS)
    asked = [(bytes(stream.tokens), stream.scoring) for stream in api.engine.submitted]
    assert asked == [
        (b"is it? ", Scoring(start=8, after=tuple(b"ynm"))),
        (b"is it? ye", Scoring(start=8, after=tuple(b"s"))),
        (b"is it? n", Scoring(start=8, after=tuple(b"o"))),
        (b"is it? mayb", Scoring(start=8, after=tuple(b"e"))),
    ]
    assert {stream.params for stream in api.engine.submitted} == {DRAWS_NOTHING}
    assert {stream.salt for stream in api.engine.submitted} == {"default"}


async def test_labels_that_differ_in_their_last_token_only_take_one_more_sequence(api: Api) -> None:
    labels = [f"class {i}" for i in range(9)]
    reply = (await api.generate(prompt="x", labels=labels)).json()
    require(reply["choices"][0], b"x", labels)
    assert len(api.engine.submitted) == 2


async def test_a_label_of_one_token_alone_is_certain(api: Api) -> None:
    (choice,) = (await api.generate(prompt="x", labels=["a"])).json()["choices"]
    assert [score["probability"] for score in choice["labels"]] == [1.0]
    assert len(api.engine.submitted) == 1


async def test_every_prompt_of_a_list_gets_its_own_answer(api: Api) -> None:
    response = await api.generate(prompt=[[104, 105], [106]], labels=LABELS)
    first, second = response.json()["choices"]
    require(first, b"hi", LABELS)
    require(second, b"j", LABELS)
    assert (first["index"], second["index"]) == (0, 1)


async def test_sequences_open_at_once_are_bounded_however_many_labels(make_api: MakeApi) -> None:
    """64 prompts of 16 labels with three tokens each: a thousand sequences, 64 at a time."""
    most = 0
    engine = FakeEngine()

    def count(_: object) -> None:
        nonlocal most
        most = max(most, len(engine.running))

    api = await make_api(engine)
    engine.on_report(count)
    labels = [f"{i:x}-{i:x}" for i in range(16)]
    response = await api.generate(prompt=[f"prompt {i}" for i in range(64)], labels=labels)
    for number, choice in enumerate(response.json()["choices"]):
        require(choice, f"prompt {number}".encode(), labels)
    assert len(engine.submitted) == 64 * 17
    assert 32 < most <= 64
    assert api.app.state.gate.open == 0


async def test_a_label_follows_messages_and_is_plain_text_there(api: Api) -> None:
    messages = [{"role": "user", "content": "hi"}]
    labels = ["a", "<|im_end|>"]
    (choice,) = (await api.generate(messages=messages, labels=labels)).json()["choices"]
    prompt = list(api.engine.submitted[0].tokens)
    assert prompt[-1] == ord("\n")
    require(choice, prompt, labels)


@pytest.mark.parametrize(
    ("files", "body", "prefix", "prompt"),
    [
        (folders.soft_prompt(3), {"prompt": "hey"}, 3, [*b"hey"]),
        (folders.soft_prompt(3), {"prompt": ""}, 2, [folders.VOCABULARY + 2]),
        (folders.prefix(3), {"prompt": "hey"}, 0, [*b"hey"]),
        (folders.multitask(2), {"prompt": "hey", "task": 1}, 4, [*b"hey"]),
        (folders.templated("{v:0-3}Is {text} it?"), {"fields": {"text": "x"}}, 4, [*b"Is x it?"]),
        (
            folders.templated("ab{v:0-1}{text}{v:2-3}"),
            {"prompt": "x"},
            4,
            [*b"x", folders.VOCABULARY + 2, folders.VOCABULARY + 3],
        ),
    ],
)
async def test_labels_with_adapters(
    api: Api, files: dict[str, bytes], body: dict[str, Any], prefix: int, prompt: list[int]
) -> None:
    await api.publish("mine", files)
    response = await api.generate(adapter="mine", labels=LABELS, **body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    require(choice, prompt, LABELS)
    sources = {stream.adapter for stream in api.engine.submitted}
    (source,) = sources
    assert source is not None
    assert len(source.prefix_ids) == prefix
    assert source.needs_table == any(token >= folders.VOCABULARY for token in prompt)
    assert response.headers["x-adapter"] == "mine@v1"


@pytest.mark.parametrize("name", sorted(set(GenerateRequest.model_fields) - BESIDE_LABELS))
async def test_what_is_about_drawing_tokens_is_refused_unless_it_says_nothing(api: Api, name: str) -> None:
    others: dict[str, Any] = {
        "logit_bias": {"5": 1}, "stop": "x", "stop_token_ids": [5], "ignore_eos": True, "stream": True, "n": 2,
        "return_token_ids": True, "top_p": 0.5, "repetition_penalty": 1.5, "typical_p": 0.5,
        "include_stop_str_in_output": True, "skip_special_tokens": False, "response_format": {"type": "json_object"},
        "structured_outputs": {"regex": "a"},
    }  # fmt: skip
    body = {"prompt": "x", "labels": ["a"]}
    message = refused(await api.generate(**body, **{name: others.get(name, 1)}), 400, "invalid_request", None)
    assert name in message
    default = GenerateRequest.model_fields[name].get_default(call_default_factory=True)
    assert (await api.generate(**body, **{name: default})).status_code == 200


async def test_the_prompt_has_to_fit_with_its_longest_label(api: Api) -> None:
    body = {"prompt": "x" * 1020, "labels": ["abcd", "abcde"]}
    assert "1025 tokens" in refused(await api.generate(**body), 400, "context_length_exceeded", "labels")
    assert (await api.generate(prompt="x" * 1020, labels=["abcd", "abc"])).status_code == 200


async def test_a_prompt_that_can_never_fit_is_not_read_with_every_label(api: Api) -> None:
    answer = await api.generate(prompt="x" * 1100, labels=LABELS)
    assert "1100 tokens" in refused(answer, 400, "context_length_exceeded", "prompt")


async def test_a_server_with_few_places_scores_many_labels_in_turn(make_api: MakeApi) -> None:
    api = await make_api(max_seqs=2, queue=2)
    labels = [f"{letter}!" for letter in "abcdefgh"]
    reply = (await api.generate(prompt=["one? ", "two? "], labels=labels)).json()
    for choice, prompt in zip(reply["choices"], (b"one? ", b"two? "), strict=True):
        require(choice, prompt, labels)
    assert api.app.state.gate.open == 0


async def test_a_full_queue_turns_labels_away_before_anything_is_computed(make_api: MakeApi) -> None:
    api = await make_api(max_seqs=2, queue=2)
    body = {"prompt": "x", "labels": ["ab", "cd", "ef"]}
    assert (await api.generate(**body)).status_code == 200
    before = len(api.engine.submitted)
    api.engine.pause()
    waiting = asyncio.create_task(api.generate(prompt="x", n=2, max_tokens=1))
    await until(lambda: bool(api.engine.running))
    refused(await api.generate(**body), 503, "overloaded", None)
    assert len(api.engine.submitted) == before + 2
    api.engine.resume()
    assert (await waiting).status_code == 200
    assert api.app.state.gate.open == 0


async def test_labels_end_with_the_clients_patience_and_with_the_engine(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(step_seconds=0.05))
    body = {"prompt": "x", "labels": ["ab", "cd"]}
    response = await api.generate(**body, timeout_s=0.02)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "timeout")
    assert api.engine.running == []
    running = asyncio.create_task(api.generate(**body))
    await until(lambda: len(api.engine.running) == 2)
    api.engine.die()
    refused(await running, 503, "engine_restarting", None)
    api.engine.revive()
    assert (await api.generate(**body)).status_code == 200
    assert api.app.state.gate.open == 0
