"""`GET /v1/models`, and what `model` and `adapter` choose together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.service.tenants import add_key
from tests.http import folders
from tests.http.conftest import Api, MakeApi
from tests.http.openai.calls import chat, complete
from tests.http.test_bad_requests import refused


async def test_the_base_and_the_adapters_are_models(api: Api) -> None:
    published = (await api.publish("soft", folders.soft_prompt())).json()
    document = (await api.client.get("/v1/models")).json()
    assert document["object"] == "list"
    base, adapter = document["data"]
    assert (base["id"], base["object"], base["parent"], base["root"]) == ("bytes", "model", None, "bytes")
    assert isinstance(base["created"], int)
    assert (base["owned_by"], base["max_model_len"], base["vocab_size"]) == ("waybill", 1024, folders.VOCABULARY)
    assert (adapter["id"], adapter["parent"], adapter["root"]) == ("soft", "bytes", "default/soft@v1")
    assert (adapter["digest"], adapter["owned_by"]) == (published["digest"], "default")
    assert (adapter["created"], adapter["num_virtual_tokens"]) == (published["created"], 4)
    assert adapter["max_model_len"] == 1024


@pytest.mark.parametrize("name", ["bytes", "soft", "bytes:soft", "default/soft", "soft@v1"])
async def test_one_model_is_shown_by_any_name_that_it_answers_to(api: Api, name: str) -> None:
    await api.publish("soft", folders.soft_prompt())
    response = await api.client.get(f"/v1/models/{name}")
    assert response.json()["id"] == name
    assert (response.json()["parent"] is None) is (name == "bytes")


@pytest.mark.parametrize("name", ["nobody", "Not-A-Name", "bytes:nobody", "a/b/c", "soft@v9"])
async def test_an_unknown_model_is_not_found(api: Api, name: str) -> None:
    await api.publish("soft", folders.soft_prompt())
    refused(await api.client.get(f"/v1/models/{name}"), 404, "model_not_found", "model")
    refused(await complete(api, model=name), 404, "model_not_found", "model")
    assert api.engine.submitted == []


async def test_a_tenant_sees_its_own_adapters_and_the_public_ones(make_api: MakeApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    own, other = add_key(keys, "acme"), add_key(keys, "rival")
    api = await make_api(keys=keys)
    mine, theirs = {"Authorization": f"Bearer {own}"}, {"Authorization": f"Bearer {other}"}
    parts = [("files", (file, data)) for file, data in folders.soft_prompt().items()]
    await api.client.post("/v1/adapters", data={"name": "soft"}, files=parts, headers=mine)
    seen = [(await api.client.get("/v1/models", headers=who)).json()["data"] for who in (mine, theirs)]
    assert [[card["id"] for card in cards] for cards in seen] == [["bytes", "soft"], ["bytes"]]
    hidden = await api.client.post("/v1/completions", json={"prompt": "x", "model": "soft"}, headers=theirs)
    refused(hidden, 404, "model_not_found", "model")
    refused(await api.client.get("/v1/models/acme/soft", headers=theirs), 404, "model_not_found", "model")


async def test_an_adapter_with_a_taken_name_is_listed_with_its_owner(api: Api) -> None:
    await api.publish("bytes", folders.soft_prompt())
    cards = (await api.client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["bytes", "default/bytes"]
    assert (await complete(api, model="bytes")).json()["adapter"] is None
    assert (await complete(api, model="bytes:bytes")).json()["adapter"]["name"] == "bytes"


@pytest.mark.parametrize(
    ("sent", "used"),
    [
        ({}, None),
        ({"model": "bytes"}, None),
        ({"model": "soft"}, "v2"),
        ({"model": "soft@v1"}, "v1"),
        ({"model": "bytes:soft@v1"}, "v1"),
        ({"model": "bytes", "adapter": "soft"}, "v2"),
        ({"adapter": "soft@v1"}, "v1"),
        ({"model": "soft", "adapter": "soft"}, "v2"),
        ({"model": "tgi"}, None),
        ({"model": "dummy", "adapter": "soft"}, "v2"),
    ],
)
async def test_model_and_adapter_choose_together(api: Api, sent: dict[str, Any], used: str | None) -> None:
    for value in (0.5, 0.25):
        await api.publish("soft", folders.soft_prompt(value=value))
    for call in (complete, chat):
        reply = (await call(api, **sent, max_tokens=1)).json()
        assert (reply["adapter"] or {}).get("version") == used
        assert reply["model"] == sent.get("model", "bytes")


async def test_a_placeholder_names_an_adapter_where_there_is_one(api: Api) -> None:
    await api.publish("tgi", folders.soft_prompt())
    assert (await complete(api, model="tgi", max_tokens=1)).json()["adapter"]["name"] == "tgi"


async def test_a_contradiction_is_refused(api: Api) -> None:
    await api.publish("soft", folders.soft_prompt())
    await api.publish("other", folders.soft_prompt(value=0.25))
    refused(await complete(api, model="soft", adapter="other"), 400, "invalid_request", "adapter")
    refused(await complete(api, model="bytes", adapter="nobody"), 404, "adapter_not_found", "adapter")


async def test_errors_speak_of_the_field_that_chose_the_adapter(make_api: MakeApi) -> None:
    api = await make_api()
    await api.publish("tasks", folders.multitask(2))
    refused(await complete(api, model="tasks"), 400, "invalid_request", "task")
    refused(await complete(api, adapter="../x"), 400, "invalid_request", "adapter")
    refused(await complete(api, model="../x"), 404, "model_not_found", "model")
