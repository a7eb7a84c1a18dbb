"""Hugging Face's `InferenceClient`, LoRAX's and TGI's own clients, against a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.clients.serving import PROMPT, Served
from tests.long.clients.results import record

HERE = Path(__file__).parent
ALL = ("huggingface_hub", "lorax", "text_generation")
WITH_ADAPTERS = ("huggingface_hub", "lorax")


@pytest.fixture(scope="module")
def told(served: Served) -> dict[str, dict[str, Any]]:
    """What each client's script told."""
    told = {name: served.ask(HERE / f"use_{name}.py", HERE / "requirements" / f"{name}.txt") for name in ALL}
    for name, results in told.items():
        record(name, results)
    return told


@pytest.mark.parametrize("client", ALL)
def test_texts_are_those_of_the_generate_route(told: dict[str, Any], served: Served, client: str) -> None:
    base = served.text(max_tokens=12)
    assert told[client]["whole"] == told[client]["streamed"] == base
    assert told[client]["stopped"] == " Berlin"
    first, second = told[client]["drawn"]
    assert first == second != base


@pytest.mark.parametrize("client", WITH_ADAPTERS)
def test_an_adapter_answers(told: dict[str, Any], served: Served, client: str) -> None:
    pirate = served.text(max_tokens=24, adapter="pirate")
    assert pirate != served.text(max_tokens=24)
    assert told[client]["adapter"] == pirate
    assert told[client]["streamed adapter"].removesuffix("<|im_end|>") == pirate


def test_asynchronous_clients(told: dict[str, Any], served: Served) -> None:
    pirate = served.text(max_tokens=24, adapter="pirate")
    assert told["huggingface_hub"]["streamed async"].removesuffix("<|im_end|>") == pirate
    assert told["lorax"]["asynchronous"] == [pirate, pirate]
    assert told["text_generation"]["asynchronous"] == [served.text(max_tokens=12)] * 2


@pytest.mark.parametrize("client", ALL)
def test_details_are_read(told: dict[str, Any], served: Served, client: str) -> None:
    reply = told[client]["details"]
    details = reply["details"]
    usage = served.generate(max_tokens=5)["usage"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 5)
    assert len(details["prefill"]) == usage["prompt_tokens"]
    assert details["prefill"][0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])
    assert "".join(token["text"] for token in details["tokens"]) == reply["generated_text"]
    if client == "lorax":
        assert details["prompt_tokens"] == usage["prompt_tokens"]
        assert [len(token["alternative_tokens"]) for token in details["tokens"]] == [2] * 5
    else:
        assert [len(top) for top in details["top_tokens"]] == [2] * 5
    assert details["seed"] == (None if client == "huggingface_hub" else 3)


@pytest.mark.parametrize("client", ALL)
def test_events_are_read(told: dict[str, Any], client: str) -> None:
    events = told[client]["streamed details"]
    assert [event["generated_text"] for event in events[:-1]] == [None] * 4
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)
    assert events[-1]["details"]["finish_reason"] == "length"
    assert events[-1]["details"]["generated_tokens"] == 5
    if client != "lorax":
        assert [len(event["top_tokens"]) for event in events] == [1] * 5


def test_what_one_client_alone_can_ask(told: dict[str, Any], served: Served) -> None:
    hub, lorax, tgi = (told[client] for client in ALL)
    assert hub["full text"] == PROMPT + served.text(max_tokens=3)
    messages = [{"role": "user", "content": PROMPT}]
    assert hub["chat"] == served.text(prompt=None, messages=messages, max_tokens=12)
    plain = served.text(prompt=None, messages=messages, max_tokens=24, adapter="plain")
    assert hub["chat adapter"] == [plain, plain]
    assert lorax["without details"] == {"generated_text": served.text(max_tokens=5), "details": None}
    assert lorax["default length"] > 0
    assert tgi["default length"] == 20


def test_structure_is_kept(told: dict[str, Any]) -> None:
    for client in ("huggingface_hub", "text_generation"):
        assert re.fullmatch("[0-9]{4}", told[client]["digits"]), client
    assert isinstance(json.loads(told["lorax"]["json"])["year"], int)
    assert isinstance(json.loads(told["huggingface_hub"]["chat json"])["year"], int)


CASES = {
    "bad value": "ValidationError",
    "bad value streamed": "ValidationError",
    "too long": "ValidationError",
    "full": "OverloadedError",
    "full streamed": "OverloadedError",
    "on the way": "OverloadedError",
}


@pytest.mark.parametrize("client", ALL)
@pytest.mark.parametrize("case", CASES)
def test_errors_are_its_own(told: dict[str, Any], client: str, case: str) -> None:
    error = told[client]["errors"][case]
    assert (error["type"], error["package"]) == (CASES[case], client), error


@pytest.mark.parametrize(
    ("client", "case", "kind"),
    [
        ("huggingface_hub", "empty", "ValidationError"),
        ("huggingface_hub", "unknown adapter", "HfHubHTTPError"),
        ("huggingface_hub", "unknown adapter streamed", "HfHubHTTPError"),
        ("huggingface_hub", "wrong key", "HfHubHTTPError"),
        ("lorax", "another source", "ValidationError"),
        ("lorax", "merged", "ValidationError"),
        ("lorax", "unknown adapter", "NotFoundError"),
        ("lorax", "unknown adapter streamed", "NotFoundError"),
        ("lorax", "wrong key", "UnknownError"),
        ("text_generation", "wrong key", "UnknownError"),
    ],
)
def test_errors_of_some(told: dict[str, Any], client: str, case: str, kind: str) -> None:
    error = told[client]["errors"][case]
    assert (error["type"], error["package"]) == (kind, client), error
    if kind == "HfHubHTTPError":
        assert error["status"] == (401 if case == "wrong key" else 404)
