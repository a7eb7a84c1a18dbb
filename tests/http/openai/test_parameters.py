"""Every field of OpenAI's routes changes what it says, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.openai.chat import ChatRequest, Message
from server.api.openai.completions import CompletionRequest
from server.api.openai.fields import StreamOptions
from tests.fakes import FakeEngine
from tests.http.conftest import MakeApi
from tests.http.parameters import Case, Heard, Neutral, Refused, Table
from tests.http.test_generate_parameters import SHARED, abc, slow

USER = [{"role": "user", "content": "hello"}]
OTHER = [{"role": "user", "content": "other"}]
TOOL = [{"type": "function", "function": {"name": "f"}}]

BOTH: dict[str, tuple[Case, ...]] = SHARED | {
    "model": (
        Heard("soft", adapters=("soft",), absent="bytes"),
        Heard("bytes:soft", adapters=("soft",), absent="bytes", shows="engine"),
        Refused("nobody", status=404),
        Refused("soft", {"adapter": "other"}, names="adapter"),
    ),
    "stream_options": (
        Heard({"include_usage": True}, {"stream": True}),
        Heard({"include_usage": True, "continuous_usage_stats": True}, {"stream": True}),
        Refused({"include_usage": True}),
    ),
    "user": (Heard("someone", shows="log"), Refused(""), Refused("x" * 129)),
    "request_id": (Heard("mine-1"), Heard("mine-1", shows="log"), Refused("a b")),
    "priority": (Neutral(0), Refused(1), Refused(-1)),
    "timeout_s": (Heard(0.01, engine=slow), Refused(0)),
}

COMPLETIONS = Table(
    "/v1/completions",
    CompletionRequest,
    {"prompt": "hello", "max_tokens": 6, "seed": 1, "temperature": 0},
    BOTH
    | {
        "add_special_tokens": (Heard(False, bos=True, shows="engine"), Refused("no")),
        "temperature": (Heard(0.7, shows="engine", absent=0), Heard(0.7, shows="engine"), Refused(5.1)),
        "prompt": (Heard("other", absent="hello"), Refused(5), Refused([])),
        "fields": (
            Heard(
                {"text": "a", "place": "b"},
                {"prompt": None, "adapter": "form"},
                absent={"text": "c", "place": "d"},
                adapters=("form",),
            ),
            Refused({"text": "x"}),
        ),
        "suffix": (Refused("the end"),),
        "max_tokens": (Heard(3), Refused(-1), Refused(0)),
        "logprobs": (Heard(1), Refused(21)),
        "echo": (Heard(True), Refused("yes")),
        "best_of": (Neutral(1), Neutral(2, {"n": 2}), Refused(2), Refused(1, {"n": 2})),
        "n": (Heard(2), Refused(17)),
    },
)

CHAT = Table(
    "/v1/chat/completions",
    ChatRequest,
    {"messages": USER, "max_tokens": 6, "seed": 1, "temperature": 0},
    BOTH
    | {
        "temperature": (Heard(0.7, shows="engine", absent=0), Heard(0.7, shows="engine"), Refused(5.1)),
        "messages": (Heard(OTHER, absent=USER), Refused([]), Refused([{"role": "tool", "content": "x"}])),
        "max_tokens": (Heard(3), Refused(0)),
        "max_completion_tokens": (Heard(3, {"max_tokens": None}), Refused(3), Refused(0, {"max_tokens": None})),
        "logprobs": (Heard(True), Refused(1)),
        "top_logprobs": (Heard(2, {"logprobs": True}), Refused(2), Refused(21, {"logprobs": True})),
        "add_special_tokens": (Neutral(False), Refused(True)),
        "tools": (Neutral([]), Refused(TOOL)),
        "tool_choice": (Neutral("none"), Refused("auto")),
        "parallel_tool_calls": (Neutral(False), Refused(True)),
        "functions": (Neutral([]), Refused([{"name": "f"}])),
        "function_call": (Neutral("none"), Refused("auto")),
        "modalities": (Neutral(["text"]), Refused(["text", "audio"])),
        "audio": (Refused({"voice": "x", "format": "wav"}),),
        "prediction": (Refused({"type": "content", "content": "x"}),),
        "web_search_options": (Refused({}),),
        "reasoning_effort": (Neutral("none"), Refused("high")),
        "verbosity": (Refused("low"),),
        "service_tier": (Neutral("auto"), Neutral("default"), Refused("priority")),
        "store": (Neutral(False), Refused(True)),
        "metadata": (Neutral({}), Refused({"a": "b"})),
        "prompt_cache_key": (Refused("x"),),
        "safety_identifier": (Refused("x"),),
    },
)

OPTIONS = Table(
    "/v1/completions",
    StreamOptions,
    {},
    {
        "include_usage": (Heard(True), Refused(1)),
        "continuous_usage_stats": (Heard(True), Refused(1)),
        "include_obfuscation": (Neutral(False), Refused(True)),
    },
    wrap=lambda options: {
        "prompt": "x",
        "seed": 1,
        "max_tokens": 3,
        "temperature": 0,
        "stream": True,
        "stream_options": options,
    },
)

MESSAGE = Table(
    "/v1/chat/completions",
    Message,
    {"role": "assistant", "content": "hi"},
    {
        "role": (Heard("user", absent="assistant"), Refused("tool")),
        "content": (Heard("ho", absent="hi"), Refused([{"type": "image_url", "image_url": {"url": "x"}}])),
        "name": (Refused("me"),),
        "refusal": (Refused("no"),),
        "tool_calls": (Neutral([]), Refused([{"id": "1"}])),
        "function_call": (Refused({"name": "f"}),),
        "annotations": (Neutral([]), Refused([{}])),
        "audio": (Refused({"id": "x"}),),
    },
    wrap=lambda message: {"messages": [message], "seed": 1, "max_tokens": 6, "temperature": 0},
)

TABLES = {"completions": COMPLETIONS, "chat": CHAT, "stream_options": OPTIONS, "message": MESSAGE}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_every_field_has_its_case(table: Table) -> None:
    assert table.unproved() == set()


@pytest.mark.parametrize(("name", "case"), COMPLETIONS.parameters())
async def test_completions(make_api: MakeApi, name: str, case: Any) -> None:
    await COMPLETIONS.check(make_api, name, case)


@pytest.mark.parametrize(("name", "case"), CHAT.parameters())
async def test_chat(make_api: MakeApi, name: str, case: Any) -> None:
    await CHAT.check(make_api, name, case)


@pytest.mark.parametrize(("name", "case"), OPTIONS.parameters())
async def test_stream_options(make_api: MakeApi, name: str, case: Any) -> None:
    await OPTIONS.check(make_api, name, case)


@pytest.mark.parametrize(("name", "case"), MESSAGE.parameters())
async def test_messages(make_api: MakeApi, name: str, case: Any) -> None:
    await MESSAGE.check(make_api, name, case)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("name", ["guided_json", "guided_regex", "guided_choice", "use_beam_search", "chat_template"])
async def test_what_others_ignore_is_refused(make_api: MakeApi, path: str, name: str) -> None:
    """vLLM took these fields once and still answers 200 to them."""
    api = await make_api(FakeEngine())
    least = {"prompt": "x"} if path == "/v1/completions" else {"messages": USER}
    response = await api.client.post(path, json={**least, name: {}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name


async def test_a_stop_of_one_text_is_the_same_as_a_list_of_it(make_api: MakeApi) -> None:
    api = await make_api(abc())
    bodies = [{"prompt": "x", "stop": stop} for stop in ("b", ["b"])]
    told = [(await api.client.post("/v1/completions", json=body)).json()["choices"] for body in bodies]
    assert told[0] == told[1]
