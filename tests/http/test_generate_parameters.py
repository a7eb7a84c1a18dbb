"""Every field of `POST /v1/generate` changes what it says, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.schemas import GenerateRequest
from tests.fakes import FakeEngine, saying
from tests.http import folders
from tests.http.conftest import MakeApi
from tests.http.parameters import Case, Heard, Refused, Table

CHAT = [{"role": "user", "content": "hi"}]
INTEGER = {"type": "integer"}


def abc() -> FakeEngine:
    """An engine that says abcabc…"""
    return FakeEngine(next_token=saying(*b"abc"))


def ending() -> FakeEngine:
    """An engine that ends after one letter, unless it is told to go on."""
    return FakeEngine(next_token=saying(ord("a"), folders.EOS), eos=frozenset((folders.EOS,)))


def slow() -> FakeEngine:
    """An engine that takes its time."""
    return FakeEngine(step_seconds=0.05)


SHARED: dict[str, tuple[Case, ...]] = {
    "adapter": (
        Heard("soft", adapters=("soft",)),
        Heard("soft", adapters=("soft",), shows="engine"),
        Refused("../x"),
        Refused("nobody", status=404),
    ),
    "task": (
        Heard(1, {"adapter": "tasks"}, absent=0, adapters=("tasks",), shows="engine"),
        Refused(1),
    ),
    "min_tokens": (Heard(3, engine=ending, shows="engine"), Refused(-1), Refused(9)),
    "temperature": (Heard(0.7, absent=0, shows="engine"), Refused(5.1)),
    "top_k": (Heard(3, shows="engine"), Refused(-2)),
    "top_p": (Heard(0.5, shows="engine"), Refused(0)),
    "min_p": (Heard(0.5, shows="engine"), Refused(2)),
    "typical_p": (Heard(0.5, shows="engine"), Refused(0)),
    "repetition_penalty": (Heard(1.5, shows="engine"), Refused(0)),
    "presence_penalty": (Heard(1.5, shows="engine"), Refused(3)),
    "frequency_penalty": (Heard(1.5, shows="engine"), Refused(3)),
    "logit_bias": (Heard({"97": 5}, shows="engine"), Refused({"a": 1}), Refused({"999": 1})),
    "stop": (Heard("b", engine=abc), Heard(["c", "b"], engine=abc), Refused(["a"] * 17)),
    "stop_token_ids": (Heard([98], engine=abc), Refused([999])),
    "include_stop_str_in_output": (
        Heard(True, {"stop": "b"}, engine=abc),
        Heard(True, {"stop_token_ids": [98]}, engine=abc),
        Refused("yes"),
    ),
    "ignore_eos": (Heard(True, engine=ending, shows="engine"), Refused(1)),
    "n": (Heard(2), Refused(17)),
    "seed": (Heard(2, {"temperature": 1}, absent=1), Refused(-1)),
    "prompt_logprobs": (Heard(1), Refused(21), Refused(0, {"stream": True})),
    "truncate_prompt_tokens": (Heard(2, shows="engine"), Refused(0)),
    "skip_special_tokens": (Heard(False, {"ignore_eos": True}, engine=ending), Refused("no")),
    "cache_salt": (Heard("pepper", shows="engine"), Refused("a/b")),
    "response_format": (
        Heard({"type": "json_object"}, shows="engine"),
        Heard({"type": "json_object", "value": INTEGER}, absent={"type": "json_object"}, shows="engine"),
        Heard({"type": "json_object", "schema": INTEGER}, absent={"type": "json_object"}, shows="engine"),
        Refused({"type": "xml"}),
        Refused({"type": "text", "value": INTEGER}),
        Refused({"type": "json_object", "value": INTEGER, "schema": INTEGER}),
    ),
    "structured_outputs": (
        Heard({"regex": "[ab]+"}, shows="engine"),
        Refused({}),
        Refused({"regex": "a"}, {"response_format": {"type": "json_object"}}),
    ),
    "timeout_s": (Heard(0.01, engine=slow), Refused(0)),
    "stream": (Heard(True), Refused("yes")),
    "return_token_ids": (Heard(True), Refused(1)),
}
"""Cases of the fields that every generating route has."""

TABLE = Table(
    "/v1/generate",
    GenerateRequest,
    {"prompt": "hello", "max_tokens": 6, "seed": 1},
    SHARED
    | {
        "add_special_tokens": (Heard(False, bos=True, shows="engine"), Refused("no")),
        "prompt": (Heard("other", absent="hello"), Refused(5)),
        "messages": (Heard(CHAT, {"prompt": None}, absent=[{"role": "user", "content": "ho"}]), Refused([])),
        "fields": (
            Heard(
                {"text": "a", "place": "b"},
                {"prompt": None, "adapter": "form"},
                absent={"text": "c", "place": "d"},
                adapters=("form",),
            ),
            Refused({"text": "x"}, {"prompt": None}),
        ),
        "max_tokens": (Heard(3), Refused(-1), Refused(0)),
        "max_new_tokens": (Heard(3, {"max_tokens": None}), Refused(5)),
        "logprobs": (Heard(1), Refused(21)),
        "labels": (
            Heard(["yes", "no"], {"max_tokens": None, "seed": None}),
            Refused([]),
            Refused(["a", "a"], {"max_tokens": None, "seed": None}),
            Refused(["a"], {"seed": None}),
        ),
    },
)


def test_every_field_has_its_case() -> None:
    assert TABLE.unproved() == set()


@pytest.mark.parametrize(("name", "case"), TABLE.parameters())
async def test_is_heard_or_refused(make_api: MakeApi, name: str, case: Any) -> None:
    await TABLE.check(make_api, name, case)
