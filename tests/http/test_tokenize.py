"""`/tokenize`, `/detokenize` and `/tokenizer_info`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.tokenize import DetokenizeRequest, TokenizeRequest
from server.service.tenants import add_key
from tests.http import folders
from tests.http.conftest import Api, MakeApi, until
from tests.http.parameters import Heard, Neutral, Refused, Table
from tests.http.test_bad_requests import refused

USER = [{"role": "user", "content": "hi"}]


async def tokenize(api: Api, **body: Any) -> httpx.Response:
    """POST /tokenize."""
    return await api.client.post("/tokenize", json=body)


async def test_a_text_as_vllm_tells_it(api: Api) -> None:
    assert (await tokenize(api, prompt="hi<|im_end|>")).json() == {
        "count": 3,
        "max_model_len": 1024,
        "tokens": [104, 105, folders.EOS],
        "token_strs": None,
        "virtual_tokens": 0,
    }
    told = (await tokenize(api, prompt="h é", return_token_strs=True)).json()
    assert told["token_strs"] == ["h", "Ġ", "Ã", "©"]
    assert (await tokenize(api, prompt="")).json()["tokens"] == []


async def test_special_tokens_are_added_as_by_default_or_not(make_api: MakeApi) -> None:
    api = await make_api(bos=True)
    assert (await tokenize(api, prompt="hi")).json()["tokens"] == [folders.BOS, 104, 105]
    assert (await tokenize(api, prompt="hi", add_special_tokens=False)).json()["tokens"] == [104, 105]
    located = (await tokenize(api, inputs="hi")).json()
    assert located[0] == {"id": folders.BOS, "text": "", "start": 0, "stop": 0}
    assert [token["id"] for token in (await tokenize(api, inputs="hi", add_special_tokens=False)).json()] == [104, 105]


async def test_messages_are_tokenized_as_a_chat_would_be(api: Api) -> None:
    told = (await tokenize(api, messages=USER)).json()["tokens"]
    await api.generate(messages=USER, max_tokens=1)
    assert tuple(told) == api.engine.submitted[0].tokens
    bare = (await tokenize(api, messages=USER, add_generation_prompt=False)).json()["tokens"]
    assert bare == told[: len(bare)]
    assert bytes(told[len(bare) + 1 :]) == b"assistant\n"


async def test_a_text_as_tgi_tells_it(api: Api) -> None:
    assert (await tokenize(api, inputs="aé")).json() == [
        {"id": 97, "text": "a", "start": 0, "stop": 1},
        {"id": 0xC3, "text": "é", "start": 1, "stop": 2},
        {"id": 0xA9, "text": "é", "start": 1, "stop": 2},
    ]


async def test_an_adapters_virtual_tokens_are_counted_apart(api: Api) -> None:
    await api.publish("soft", folders.soft_prompt(5))
    await api.publish("form", folders.templated("{v:0-1}Say {text}{v:2-3}."))
    plain = (await tokenize(api, prompt="hi", adapter="soft")).json()
    assert (plain["count"], plain["tokens"], plain["virtual_tokens"]) == (2, [104, 105], 5)
    filled = (await tokenize(api, prompt="hi", model="form")).json()
    assert (bytes(filled["tokens"]), filled["count"], filled["virtual_tokens"]) == (b"Say hi.", 7, 4)
    by_field = (await tokenize(api, fields={"text": "hi"}, model="form")).json()
    assert by_field == filled


async def test_tokens_go_back_to_text(api: Api) -> None:
    response = await api.client.post("/detokenize", json={"tokens": [*"héy".encode(), folders.EOS]})
    assert response.json() == {"prompt": "héy<|im_end|>"}
    beyond = await api.client.post("/detokenize", json={"tokens": [folders.VOCABULARY]})
    refused(beyond, 400, "invalid_request", "tokens")


async def test_what_a_client_needs_to_do_the_same(api: Api) -> None:
    assert (await api.client.get("/tokenizer_info")).json() == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": folders.CHAT_TEMPLATE,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "unk_token": None,
        "pad_token": None,
        "model_max_length": 1024,
        "vocab_size": folders.VOCABULARY,
    }


async def test_all_of_it_is_behind_a_key(make_api: MakeApi, tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "acme")
    api = await make_api(keys=tmp_path / "keys.json")
    for response in (
        await tokenize(api, prompt="x"),
        await api.client.post("/detokenize", json={"tokens": [1]}),
        await api.client.get("/tokenizer_info"),
    ):
        refused(response, 401, "invalid_api_key", None)


async def test_texts_are_bounded(api: Api) -> None:
    for name in ("prompt", "inputs"):
        refused(await tokenize(api, **{name: "x" * 100_000}), 400, "context_length_exceeded", name)
    refused(await tokenize(api, messages=[{"role": "user", "content": "x" * 100_000}]), 400, "context_length_exceeded",
            "messages")  # fmt: skip


async def test_a_full_server_has_no_core_to_spare(make_api: MakeApi) -> None:
    api = await make_api(max_seqs=1, queue=0)
    api.engine.pause()
    waiting = asyncio.create_task(api.generate(prompt="x", max_tokens=1))
    await until(lambda: bool(api.engine.running))
    refused(await tokenize(api, prompt="x"), 503, "overloaded", None)
    api.engine.resume()
    assert (await waiting).status_code == 200
    assert (await tokenize(api, prompt="x")).status_code == 200


TOKENIZE = Table(
    "/tokenize",
    TokenizeRequest,
    {"prompt": "hello"},
    {
        "prompt": (Heard("other", absent="hello"), Refused(5), Refused("x", {"inputs": "y"})),
        "messages": (
            Heard(USER, {"prompt": None}, absent=[{"role": "user", "content": "ho"}]),
            Refused(USER, names="prompt"),
        ),
        "fields": (
            Heard(
                {"text": "a", "place": "b"},
                {"prompt": None, "adapter": "form"},
                absent={"text": "c", "place": "d"},
                adapters=("form",),
            ),
            Refused({"text": "a"}, {"prompt": None}),
        ),
        "inputs": (Heard("a", {"prompt": None}, absent="b"), Refused(1, {"prompt": None})),
        "model": (
            Heard("soft", adapters=("soft",)),
            Neutral("bytes"),
            Refused("nobody", status=404),
            Refused("soft", {"prompt": None, "inputs": "x"}),
        ),
        "adapter": (
            Heard("soft", adapters=("soft",)),
            Refused("nobody", status=404),
            Refused("soft", {"prompt": None, "inputs": "x"}),
        ),
        "task": (
            Refused(5, {"adapter": "tasks"}, adapters=("tasks",)),
            Refused(1),
            Refused(1, {"prompt": None, "inputs": "x"}),
        ),
        "add_special_tokens": (
            Heard(False, bos=True),
            Refused(1),
            Refused(True, {"prompt": None, "messages": USER}),
        ),
        "add_generation_prompt": (Heard(False, {"prompt": None, "messages": USER}), Refused(False)),
        "return_token_strs": (Heard(True), Refused(True, {"prompt": None, "inputs": "x"})),
    },
)

DETOKENIZE = Table(
    "/detokenize",
    DetokenizeRequest,
    {"tokens": [104, 105]},
    {
        "tokens": (Heard([104], absent=[105]), Refused([-1]), Refused([999])),
        "model": (Neutral("bytes"), Refused("nobody", status=404), Refused("Not-A-Name", status=404)),
    },
)


@pytest.mark.parametrize("table", [TOKENIZE, DETOKENIZE], ids=["tokenize", "detokenize"])
def test_every_field_has_its_case(table: Table) -> None:
    assert table.unproved() == set()


@pytest.mark.parametrize(("name", "case"), TOKENIZE.parameters())
async def test_tokenize_hears_or_refuses(make_api: MakeApi, name: str, case: Any) -> None:
    await TOKENIZE.check(make_api, name, case)


@pytest.mark.parametrize(("name", "case"), DETOKENIZE.parameters())
async def test_detokenize_hears_or_refuses(make_api: MakeApi, name: str, case: Any) -> None:
    await DETOKENIZE.check(make_api, name, case)
