"""The `openai` package, in a process of its own, against a real server: what it gives and what it raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.serving import PROMPT, Served

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def told(served: Served) -> dict[str, Any]:
    """What the script told."""
    return served.ask(HERE / "use_openai.py")


def test_models(told: dict[str, Any]) -> None:
    assert set(told["models"]) == {"smollm2-135m", "pirate", "sms-spam", "question-type", "deb-summary", "plain"} | {
        model for model in told["models"] if "/" in model
    }
    assert told["model"]["parent"] == "smollm2-135m"


def test_completions_are_those_of_the_generate_route(told: dict[str, Any], served: Served) -> None:
    base, pirate = served.text(max_tokens=24), served.text(max_tokens=24, adapter="pirate")
    assert base != pirate
    assert told["whole"]["choices"][0]["text"] == told["streamed"] == base
    for way in ("adapter", "adapter beside model", "adapter of base", "streamed adapter"):
        assert told[way] == pirate, way
    assert told["asynchronous"] == [pirate, pirate]


def test_chat_is_that_of_the_generate_route(told: dict[str, Any], served: Served) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    base = served.text(prompt=None, messages=messages, max_tokens=24)
    plain = served.text(prompt=None, messages=messages, max_tokens=24, adapter="plain")
    assert base != plain
    assert told["chat"]["choices"][0]["message"]["content"] == told["chat streamed"] == base
    assert told["chat adapter"] == told["chat streamed adapter"] == plain


def test_parameters_and_usage(told: dict[str, Any], served: Served) -> None:
    usage = told["whole"]["usage"]
    assert [entry["completion_tokens"] for entry in told["usage"]] == [usage["completion_tokens"]]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert len(told["several"]) == 4
    assert told["stopped"] == " "
    assert [list(json.loads(told[way])) for way in ("json", "json of LoRAX")] == [["year"], ["year"]]
    logprobs = told["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == usage["prompt_tokens"] + 3
    assert logprobs["token_logprobs"][0] is None
    assert [len(entry["top_logprobs"]) for entry in told["chat logprobs"]["content"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("case", "kind", "status", "code", "param"),
    [
        ("bad value", "BadRequestError", 400, "invalid_request", "top_p"),
        ("bad value streamed", "BadRequestError", 400, "invalid_request", "top_p"),
        ("bad chat", "BadRequestError", 400, "invalid_request", "messages"),
        ("unknown field", "BadRequestError", 400, "invalid_request", "guided_json"),
        ("too long", "BadRequestError", 400, "context_length_exceeded", "max_tokens"),
        ("unknown model", "NotFoundError", 404, "model_not_found", "model"),
        ("unknown model streamed", "NotFoundError", 404, "model_not_found", "model"),
        ("unknown adapter", "NotFoundError", 404, "adapter_not_found", "adapter"),
        ("wrong key", "AuthenticationError", 401, "invalid_api_key", None),
        ("full", "InternalServerError", 503, "overloaded", None),
        ("full chat", "InternalServerError", 503, "overloaded", None),
        ("on the way", "APIError", None, "engine_restarting", None),
    ],
)
def test_errors_are_its_own(
    told: dict[str, Any], case: str, kind: str, status: int | None, code: str, param: str | None
) -> None:
    error = told["errors"][case]
    assert (error["type"], error["package"], error["status"]) == (kind, "openai", status), error
    assert (error["code"], error["param"]) == (code, param), error
