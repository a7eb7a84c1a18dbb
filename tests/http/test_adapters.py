"""`/v1/adapters`: uploads, what is found by whom, deletion; what is refused leaves nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.http import folders
from tests.http.conftest import Api, MakeApi, until
from tests.http.test_bad_requests import refused


def left(store: Path) -> set[str]:
    """Every file in the store."""
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and path.stat().st_size}


def is_there(path: str) -> bool:
    """Whether the file is there."""
    return Path(path).is_file()


async def test_publish_answers_with_the_version(api: Api) -> None:
    response = await api.publish("mine", folders.soft_prompt(3))
    assert response.status_code == 201, response.text
    card = response.json()
    assert card["name"] == "mine"
    assert card["tenant"] == "default"
    assert card["version"] == "v1"
    assert card["kind"] == "prompt_tuning"
    assert card["num_virtual_tokens"] == 3
    assert response.headers["etag"] == f'"{card["digest"]}"'
    assert response.headers["location"] == "/v1/adapters/mine/versions/1"
    seen = await api.client.get(response.headers["location"])
    assert seen.json() == card
    assert seen.headers["etag"] == response.headers["etag"]
    listed = (await api.client.get("/v1/adapters")).json()
    assert (listed["object"], listed["has_more"], len(listed["data"])) == ("list", False, 1)
    assert card.items() <= listed["data"][0].items()


async def test_the_same_bytes_are_the_existing_version(api: Api) -> None:
    first = await api.publish("mine", folders.soft_prompt())
    again = await api.publish("mine", folders.soft_prompt())
    assert (again.status_code, again.json()) == (200, first.json())
    other = await api.publish("mine", folders.soft_prompt(value=0.25))
    assert (other.status_code, other.json()["version"]) == (201, "v2")
    assert (await api.client.get("/v1/adapters/mine/versions/v1")).json()["digest"] == first.json()["digest"]
    assert (await api.client.get("/v1/adapters/mine")).json()["version"] == "v2"


@pytest.mark.parametrize("top", ["", "folder/"])
async def test_a_zip_is_the_same_adapter_as_its_files(api: Api, top: str) -> None:
    plain = (await api.publish("plain", folders.prefix())).json()
    packed = await api.publish("packed", {"adapter.zip": folders.zipped(folders.prefix(), top)})
    assert packed.status_code == 201, packed.text
    assert packed.json()["digest"] == plain["digest"]


async def test_a_dry_run_judges_and_publishes_nothing(api: Api) -> None:
    before = left(api.store)
    response = await api.publish("mine", folders.soft_prompt(), dry_run="true")
    assert response.status_code == 200
    assert "version" not in response.json()
    assert response.json()["kind"] == "prompt_tuning"
    assert len(api.engine.checked) == 1
    assert left(api.store) == before
    assert (await api.client.get("/v1/adapters/mine")).status_code == 404
    digest = (await api.publish("mine", folders.soft_prompt())).json()["digest"]
    assert response.json()["digest"] == digest


async def test_generate_uses_the_adapter_and_tells_which(api: Api) -> None:
    card = (await api.publish("mine", folders.soft_prompt(4))).json()
    reply = (await api.generate(adapter="mine", prompt="hi", max_tokens=3)).json()
    names = ("name", "version", "digest", "kind", "num_virtual_tokens")
    assert reply["adapter"] == {name: card[name] for name in names}
    assert reply["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "virtual_tokens": 4,
        "cached_tokens": 0,
    }
    source = api.engine.submitted[-1].adapter
    assert source is not None
    assert source.key.adapter == card["digest"]
    assert source.prefix_ids == tuple(range(folders.VOCABULARY, folders.VOCABULARY + 4))
    assert is_there(source.path)
    plain = await api.text(prompt="hi", max_tokens=3)
    assert plain != reply["choices"][0]["text"]


async def test_a_version_or_digest_can_be_asked_for(api: Api) -> None:
    first = (await api.publish("mine", folders.soft_prompt())).json()
    await api.publish("mine", folders.soft_prompt(value=0.25))
    for reference in ("mine@v1", f"mine@{first['digest']}", "default/mine@v1"):
        reply = (await api.generate(adapter=reference, prompt="x", max_tokens=1)).json()
        assert reply["adapter"]["digest"] == first["digest"]
    refused(await api.generate(adapter="mine@v3", prompt="x"), 404, "adapter_not_found", "adapter")


async def test_a_template_is_filled_by_prompt_or_fields(api: Api) -> None:
    card = (await api.publish("mine", folders.templated("{v:0-1}Q: {text} A:{v:2-3}"))).json()
    assert card["template"] == "{v:0-1}Q: {text} A:{v:2-3}"
    assert card["fields"] == ["text"]
    await api.generate(adapter="mine", prompt="why", max_tokens=1)
    await api.generate(adapter="mine", fields={"text": "why"}, max_tokens=1)
    by_prompt, by_fields = api.engine.submitted
    assert by_prompt.tokens == by_fields.tokens
    v = folders.VOCABULARY
    assert by_prompt.adapter is not None
    assert (*by_prompt.adapter.prefix_ids, *by_prompt.tokens) == (v, v + 1, *b"Q: why A:", v + 2, v + 3)
    assert by_prompt.adapter.needs_table


@pytest.mark.parametrize("name", ["a/b", "a b", "A", "", "a,b", "../a", "a\nb", "x" * 65])
async def test_a_bad_name_is_refused(api: Api, name: str) -> None:
    before = left(api.store)
    refused(await api.publish(name, folders.soft_prompt()), 400, "invalid_request", "name")
    assert left(api.store) == before


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"adapter_config.json": b"{}"}, "adapter_invalid", "adapter_model.safetensors"),
        ({**folders.soft_prompt(), "adapter_model.bin": b"x"}, "adapter_invalid", "pickle"),
        ({**folders.soft_prompt(), "evil.py": b"x"}, "adapter_invalid", "evil.py"),
        ({"../evil.zip": folders.zipped(folders.soft_prompt())}, "adapter_invalid", "evil.zip"),
        ({"a.zip": folders.zipped(folders.soft_prompt(), "../")}, "adapter_invalid", "outside"),
        ({"a.zip": b"PK not a zip"}, "adapter_invalid", "zip"),
        (folders.soft_prompt(hidden=16), "adapter_incompatible", "16"),
    ],
    ids=["missing", "pickle", "unknown", "path", "traversal", "damaged", "size"],
)
async def test_bad_files_are_refused_and_leave_nothing(
    api: Api, files: dict[str, bytes], code: str, words: str
) -> None:
    before = left(api.store)
    message = refused(await api.publish("mine", files), 422, code, None)
    assert words in message
    assert left(api.store) == before
    assert (await api.client.get("/v1/adapters")).json()["data"] == []


async def test_what_the_engine_rejects_leaves_nothing(api: Api) -> None:
    before = left(api.store)
    api.engine.rejects = "tensor 'prompt_embeddings' holds 1 values that are NaN or infinite"
    message = refused(await api.publish("mine", folders.soft_prompt()), 422, "adapter_invalid", None)
    assert "NaN" in message
    assert left(api.store) == before
    assert api.engine.forgotten == [api.engine.checked[0].key.adapter]


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("name", (None, b"a")), ("name", (None, b"b"))], "name"),
        ([("name", (None, b"a")), ("tenant", (None, b"b"))], "tenant"),
        ([("name", (None, b"a" * 5000))], "name"),
        ([("name", (None, b"\xff"))], "name"),
        ([("name", (None, b"a"))], "files"),
        ([("files", ("adapter_config.json", b"{}"))], "name"),
        ([("name", (None, b"a")), ("file", ("adapter_config.json", b"{}"))], "file"),
        ([("files", ("adapter_config.json", b"{}"))] * 2, "files"),
        ([("files", ("a.zip", b"")), ("files", ("b.zip", b"")), ("name", (None, b"a"))], "files"),
        ([("name", (None, b"a")), ("dry_run", (None, b"maybe"))], "dry_run"),
        ([("name", (None, b"a")), ("files", (None, b"{}"))], "files"),
    ],
)
async def test_a_bad_form_is_refused(api: Api, parts: list[Any], param: str) -> None:
    before = left(api.store)
    refused(await api.client.post("/v1/adapters", files=parts), 400, "invalid_request", param)
    assert left(api.store) == before


async def test_a_body_that_is_no_form_is_refused(api: Api) -> None:
    post = api.client.post
    refused(await post("/v1/adapters", json={}), 415, "unsupported_media_type", None)
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(await post("/v1/adapters", content=b"nonsense", headers=form), 400, "invalid_request", None)
    cut = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nmine'
    refused(await post("/v1/adapters", content=cut, headers=form), 400, "invalid_request", None)
    parts = b"--b\r\nContent-Disposition: form-data; name=dry_run\r\n\r\n1\r\n" + b"--b\r\n" * 2
    refused(await post("/v1/adapters", content=parts, headers=form), 400, "invalid_request", None)
    assert left(api.store) == set()


async def test_an_upload_above_the_limit_is_413(make_api: MakeApi) -> None:
    api = await make_api(max_upload=2**20)
    files = {**folders.soft_prompt(), "README.md": b"x" * 2**21}
    refused(await api.publish("mine", files), 413, "payload_too_large", None)
    assert left(api.store) == set()


async def test_deleting_waits_for_the_requests_that_run(api: Api) -> None:
    card = (await api.publish("mine", folders.soft_prompt())).json()
    api.engine.pause()
    running = asyncio.create_task(api.generate(adapter="mine", prompt="x", max_tokens=2))
    await until(lambda: bool(api.engine.running))
    source = api.engine.running[0].adapter
    assert source is not None
    api.engine.forgotten.clear()
    assert (await api.client.delete("/v1/adapters/mine")).status_code == 204
    refused(await api.generate(adapter="mine", prompt="x"), 404, "adapter_not_found", "adapter")
    refused(await api.client.get("/v1/adapters/mine"), 404, "adapter_not_found", "adapter")
    assert is_there(source.path)
    assert api.engine.forgotten == []
    api.engine.resume()
    assert (await running).status_code == 200
    await until(lambda: not is_there(source.path))
    await until(lambda: api.engine.forgotten == [card["digest"]])
    refused(await api.client.delete("/v1/adapters/mine"), 404, "adapter_not_found", "adapter")


async def test_a_deleted_name_can_be_published_again(api: Api) -> None:
    old = (await api.publish("mine", folders.soft_prompt())).json()
    await api.client.delete("/v1/adapters/mine")
    await asyncio.sleep(0.1)
    new = await api.publish("mine", folders.soft_prompt(value=0.25))
    assert new.status_code == 201, new.text
    assert new.json()["digest"] != old["digest"]
    reply = (await api.generate(adapter="mine", prompt="x", max_tokens=1)).json()
    assert reply["adapter"]["digest"] == new.json()["digest"]
    refused(await api.generate(adapter="mine@v1", prompt="x"), 404, "adapter_not_found", "adapter")


async def test_replacing_leaves_running_requests_their_version(api: Api) -> None:
    first = (await api.publish("mine", folders.soft_prompt())).json()
    api.engine.pause()
    running = asyncio.create_task(api.generate(adapter="mine", prompt="x", max_tokens=2))
    await until(lambda: bool(api.engine.running))
    second = (await api.publish("mine", folders.soft_prompt(value=0.25))).json()
    api.engine.resume()
    assert (await running).json()["adapter"]["digest"] == first["digest"]
    later = await api.generate(adapter="mine", prompt="x", max_tokens=1)
    assert later.json()["adapter"]["digest"] == second["digest"]


async def test_the_card_of_a_multitask_adapter_names_its_tasks(api: Api) -> None:
    files = folders.multitask(tasks=3)
    files["waybill.json"] = json.dumps({"version": 1, "tasks": {"sum": 1}}).encode()
    card = (await api.publish("mine", files)).json()
    assert card["tasks"] == [0, "sum", 2]
    assert [source.key.task for source in api.engine.checked] == [0]  # the others when they are loaded
    for task in ("sum", 1):
        assert (await api.generate(adapter="mine", prompt="x", task=task, max_tokens=1)).status_code == 200
        source = api.engine.submitted[-1].adapter
        assert source is not None
        assert source.key.task == 1
    refused(await api.generate(adapter="mine", prompt="x", task="mul"), 400, "invalid_request", "task")
