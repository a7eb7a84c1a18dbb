"""`/v1/adapters/{name}/…`: versions, aliases, downloads, pages, and what is in memory."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import zipfile
from typing import Any

import pytest

from tests.http import folders
from tests.http.conftest import Api, until
from tests.http.test_bad_requests import refused


async def publish(api: Api, name: str, *values: float, **parts: str) -> list[str]:
    """Publish soft prompts that differ in their values; return the digests."""
    answers = [await api.publish(name, folders.soft_prompt(value=value), **parts) for value in values]
    assert {answer.status_code for answer in answers} <= {200, 201}
    return [answer.json()["digest"] for answer in answers]


async def digest(api: Api, reference: str) -> str:
    """The digest that answers."""
    answer = await api.generate(prompt="hi", adapter=reference, max_tokens=1)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["adapter"]["digest"]
    return found


async def put(api: Api, path: str, body: dict[str, Any], if_match: str | None = None) -> Any:
    headers = {} if if_match is None else {"If-Match": if_match}
    return await api.client.put(f"/v1/adapters/{path}", json=body, headers=headers)


async def test_an_alias_is_promoted_rolled_back_and_removed(api: Api) -> None:
    first, second, third = await publish(api, "mine", 0.1, 0.2, 0.3)
    moved = await put(api, "mine/aliases/prod", {"version": 1})
    assert moved.json() == {"alias": "prod", "before": None, "version": "v1", "revision": 4}
    assert moved.headers["etag"] == '"4"'
    assert await digest(api, "mine@prod") == first
    for version, expected in (("v2", second), ("latest", third), (second, second)):
        assert (await put(api, "mine/aliases/prod", {"version": version})).status_code == 200
        assert await digest(api, "mine@prod") == expected
    back = await api.client.post("/v1/adapters/mine/aliases/prod:rollback")
    assert (back.json()["before"], back.json()["version"]) == ("v2", "v3")
    back = await api.client.post("/v1/adapters/mine/aliases/latest:rollback")
    assert back.json()["version"] == "v2"
    assert await digest(api, "mine") == second
    card = (await api.client.get("/v1/adapters/mine")).json()
    assert (card["version"], card["aliases"]) == ("v2", {"latest": "v2", "prod": "v3"})
    assert (await api.client.delete("/v1/adapters/mine/aliases/prod")).status_code == 204
    refused(await api.generate(prompt="hi", adapter="mine@prod"), 404, "adapter_not_found", "adapter")
    refused(await api.client.delete("/v1/adapters/mine/aliases/latest"), 400, "invalid_request", "alias")
    refused(await put(api, "mine/aliases/prod", {"version": 9}), 404, "adapter_not_found", "adapter")
    refused(await put(api, "mine/aliases/v3", {"version": 1}), 400, "invalid_request", "alias")
    refused(await put(api, "mine/aliases/prod", {"version": 0}), 400, "invalid_request", "version")


async def test_a_change_of_what_was_not_seen_is_refused(api: Api) -> None:
    await publish(api, "mine", 0.1, 0.2)
    seen = (await api.client.get("/v1/adapters/mine")).headers["etag"]
    assert (await put(api, "mine/aliases/prod", {"version": 1}, seen)).status_code == 200
    headers = {"If-Match": seen}
    for answer in (
        await put(api, "mine/aliases/prod", {"version": 2}, seen),
        await api.client.post("/v1/adapters/mine/aliases/latest:rollback", headers=headers),
        await api.client.delete("/v1/adapters/mine/aliases/prod", headers=headers),
        await api.client.patch("/v1/adapters/mine", json={"description": "x"}, headers=headers),
    ):
        refused(answer, 412, "revision_conflict", "If-Match")
    assert (await put(api, "mine/aliases/prod", {"version": 2}, "*")).status_code == 200
    refused(await put(api, "mine/aliases/prod", {"version": 1}, "three"), 400, "invalid_request", "If-Match")


async def test_fifty_moves_from_one_state_have_one_winner(api: Api) -> None:
    await publish(api, "mine", 0.1, 0.2)
    seen = (await api.client.get("/v1/adapters/mine")).headers["etag"]
    answers = await asyncio.gather(*(put(api, f"mine/aliases/a{i}", {"version": 1}, seen) for i in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 49


async def test_publishing_moves_an_alias(api: Api) -> None:
    first, _ = await publish(api, "mine", 0.1, 0.2)
    await publish(api, "mine", 0.1, alias="prod")
    assert await digest(api, "mine@prod") == first
    dry = await api.publish("mine", folders.soft_prompt(value=0.2), alias="prod", dry_run="true")
    assert dry.status_code == 200
    assert await digest(api, "mine@prod") == first


async def test_what_is_written_about_an_adapter(api: Api) -> None:
    await publish(api, "mine", 0.1)
    changed = await api.client.patch("/v1/adapters/mine", json={"description": "spam or ham", "tags": ["b", "a", "b"]})
    assert changed.status_code == 200, changed.text
    changed = await api.client.patch("/v1/adapters/mine", json={"description": "ham or spam"})
    card = (await api.client.get("/v1/adapters/mine")).json()
    assert card == changed.json()
    assert (card["description"], card["tags"]) == ("ham or spam", ["b", "a"])
    for body in ({"description": 5}, {"tags": [""]}, {"tags": ["x"] * 33}, {"name": "x"}, {"description": "x" * 2001}):
        answer = await api.client.patch("/v1/adapters/mine", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith(next(iter(body)))


async def test_versions_are_listed_shown_and_deleted(api: Api) -> None:
    digests = await publish(api, "mine", 0.1, 0.2, 0.3)
    listed = (await api.client.get("/v1/adapters/mine/versions")).json()
    assert [card["version"] for card in listed["data"]] == ["v3", "v2", "v1"]
    part = (await api.client.get("/v1/adapters/mine/versions?limit=1&before=3")).json()
    assert ([card["version"] for card in part["data"]], part["has_more"]) == (["v2"], True)
    for version in ("1", "v1", digests[0]):
        shown = await api.client.get(f"/v1/adapters/mine/versions/{version}")
        assert shown.json() == listed["data"][2]
        assert shown.headers["etag"] == f'"{digests[0]}"'
    refused(await api.client.delete("/v1/adapters/mine/versions/3"), 400, "invalid_request", "version")
    assert (await api.client.delete("/v1/adapters/mine/versions/2")).status_code == 204
    refused(await api.client.get("/v1/adapters/mine/versions/2"), 404, "adapter_not_found", "adapter")
    refused(await api.generate(prompt="hi", adapter="mine@v2"), 404, "adapter_not_found", "adapter")
    assert await digest(api, "mine@v1") == digests[0]
    gone = api.store / "default/mine/versions/000002"
    await until(lambda: not gone.exists())
    await until(lambda: digests[1] in api.engine.forgotten)
    assert not {digests[0], digests[2]} & set(api.engine.forgotten)


async def test_a_deleted_version_stays_while_it_is_used(api: Api) -> None:
    digests = await publish(api, "mine", 0.1, 0.2, 0.3)
    api.engine.pause()
    running = asyncio.create_task(api.generate(prompt="hi", adapter="mine@v1", max_tokens=2))
    await until(lambda: len(api.engine.submitted) == 1)
    for version in (1, 2):
        assert (await api.client.delete(f"/v1/adapters/mine/versions/{version}")).status_code == 204
    refused(await api.generate(prompt="hi", adapter="mine@v1"), 404, "adapter_not_found", "adapter")
    assert (api.store / "default/mine/versions/000001").exists()
    api.engine.resume()
    assert (await running).json()["adapter"]["digest"] == digests[0]
    await until(lambda: not (api.store / "default/mine/versions/000001").exists())
    await until(lambda: not (api.store / "default/mine/versions/000002").exists())


async def test_a_download_is_what_was_uploaded(api: Api) -> None:
    files = folders.templated("{v:0-1}Q: {text} A:{v:2-3}")
    published = (await api.publish("mine", files)).json()
    answer = await api.client.get("/v1/adapters/mine/versions/latest/download")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="mine-v1.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
    assert (await api.client.get("/v1/adapters/mine/versions/1/download")).content == answer.content
    tag = {"If-None-Match": answer.headers["etag"]}
    assert (await api.client.get("/v1/adapters/mine/versions/1/download", headers=tag)).status_code == 304
    again = await api.publish("copy", {"mine-v1.zip": answer.content})
    assert again.json()["digest"] == published["digest"]
    assert (await api.client.delete("/v1/adapters/mine")).status_code == 204
    await until(lambda: not list((api.store / "default/mine/versions").iterdir()))


async def test_a_list_comes_in_pages_and_can_be_filtered(api: Api) -> None:
    for turn in range(5):
        await publish(api, f"soft{turn}", 0.1 + turn / 100)
    await api.publish("prefix", folders.prefix())
    await api.client.patch("/v1/adapters/soft3", json={"tags": ["spam"]})
    seen: list[str] = []
    after = ""
    for _ in range(10):
        page = (await api.client.get(f"/v1/adapters?limit=2&after={after}")).json()
        assert len(page["data"]) <= 2
        seen += [card["name"] for card in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert seen == ["prefix", "soft0", "soft1", "soft2", "soft3", "soft4"]

    async def names(query: str) -> list[str]:
        return [card["name"] for card in (await api.client.get(f"/v1/adapters?{query}")).json()["data"]]

    assert await names("kind=prefix_tuning") == ["prefix"]
    assert await names("tag=spam") == ["soft3"]
    assert await names("tenant=public") == []
    assert await names("tenant=default&limit=1") == ["prefix"]
    await digest(api, "soft2")
    assert await names("resident=true") == ["soft2"]
    assert "soft2" not in await names("resident=false")
    for query in ("limit=0", "limit=1001", "kind=lora", "resident=maybe", "after=nobody/x", "colour=red"):
        refused(await api.client.get(f"/v1/adapters?{query}"), 400, "invalid_request", query.split("=")[0])


async def test_what_is_in_memory_is_told_and_changed(api: Api) -> None:
    digests = await publish(api, "mine", 0.1, 0.2)

    async def residency(query: str = "") -> dict[str, Any]:
        found: dict[str, Any] = (await api.client.get(f"/v1/adapters/mine/residency{query}")).json()
        return found

    cold = {"version": "v2", "digest": digests[1], "state": "disk", "pinned": False, "in_flight": 0}
    assert await residency() == cold
    loaded = await put(api, "mine/residency", {"preload": True})
    assert (loaded.json()["state"], loaded.json()["in_flight"]) == ("kv", 0)
    assert loaded.json()["last_used"] > 1_700_000_000
    assert (await residency("?version=1"))["state"] == "disk"
    evicted = await put(api, "mine/residency", {"evict": True})
    assert evicted.json()["state"] == "disk"
    pinned = await put(api, "mine/residency?version=v1", {"pinned": True})
    assert (pinned.json()["state"], pinned.json()["pinned"], pinned.json()["version"]) == ("kv", True, "v1")
    assert api.engine.pinned == {digests[0]}
    free = await put(api, "mine/residency?version=v1", {"pinned": False})
    assert (free.json()["state"], free.json()["pinned"]) == ("kv", False)
    assert api.engine.pinned == set()
    for body in ({}, {"evict": True, "pinned": True}, {"evict": False}, {"pinned": "yes"}, {"colour": "red"}):
        assert (await put(api, "mine/residency", body)).status_code == 400


async def test_pins_are_few_survive_the_engine_and_go_with_the_version(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service.residency.MAX_PINS", 2)
    monkeypatch.setattr("server.service.residency.RESTORE_SECONDS", 0.01)
    digests = [(await publish(api, name, value))[0] for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    for name in ("a", "b"):
        assert (await put(api, f"{name}/residency", {"pinned": True})).json()["pinned"]
    refused(await put(api, "c/residency", {"pinned": True}), 400, "invalid_request", "pinned")
    api.engine.die()
    assert (await api.client.get("/v1/adapters/a/residency")).json()["state"] == "disk"
    api.engine.revive()
    await until(lambda: api.engine.pinned == set(digests[:2]))
    assert [(await api.client.get(f"/v1/adapters/{n}/residency")).json()["state"] for n in "ab"] == ["kv", "kv"]
    assert (await api.client.delete("/v1/adapters/a")).status_code == 204
    await until(lambda: api.engine.pinned == {digests[1]})
    assert (await put(api, "c/residency", {"pinned": True})).status_code == 200


async def test_what_templates_ask_for_is_preloaded_too(api: Api) -> None:
    await api.publish("mine", folders.templated("{v:0-1}Q: {text} A:{v:2-3}"))
    assert (await put(api, "mine/residency", {"preload": True})).json()["state"] == "kv"
    await api.generate(adapter="mine", fields={"text": "why"}, max_tokens=1)
    preloaded, asked = api.engine.submitted
    assert preloaded.adapter == asked.adapter


async def test_a_body_is_checked_against_its_content_digest(api: Api) -> None:
    form = api.client.build_request(
        "POST",
        "/v1/adapters",
        data={"name": "mine"},
        files=[("files", (n, d)) for n, d in folders.soft_prompt().items()],
    )
    body = await form.aread()

    async def send(digest: str, content: bytes = body) -> Any:
        headers = {"Content-Type": form.headers["content-type"], "Content-Digest": digest}
        return await api.client.post("/v1/adapters", content=content, headers=headers)

    def of(name: str, content: bytes = body) -> str:
        return base64.b64encode(hashlib.new(name, content).digest()).decode()

    assert (await send(f"sha-256=:{of('sha256')}:")).status_code == 201
    assert (await send(f"sha-512=:{of('sha512')}:, md5=:{of('md5')}:")).status_code == 200
    damaged = body.replace(b"mine", b"mins")
    for header in (
        f"sha-256=:{of('sha256', damaged)}:", f"sha-256=:{of('sha256')}:, sha-512=:{of('sha256')}:", "sha-256=abc",
        f"md5=:{of('md5')}:", "", "sha-256=:!:", "sha-256=:abc:",
    ):  # fmt: skip
        refused(await send(header), 400, "invalid_request", "Content-Digest")
    refused(await send(f"sha-256=:{of('sha256')}:", damaged), 400, "invalid_request", "Content-Digest")
    assert len((await api.client.get("/v1/adapters")).json()["data"]) == 1


async def test_an_adapter_is_verified(api: Api) -> None:
    first, second = await publish(api, "mine", 0.1, 0.2)
    answer = await api.client.post("/v1/adapters/mine:verify")
    assert answer.status_code == 200
    assert answer.json() == {
        "name": "mine", "tenant": "default", "version": "v2", "digest": second, "dtype": "float32", "holds": True,
        "positions": 9, "same_tokens": 9, "largest_difference": 2e-5, "standard_deviation": 3.0, "error": 2e-5,
        "allowed": 3e-4,
    }  # fmt: skip
    tokens, new_tokens, source = api.engine.verified[-1]
    assert (source.key.adapter, new_tokens) == (second, 8)
    assert len(tokens) > 50
    older = await api.client.post("/v1/adapters/mine:verify", params={"version": "1"})
    assert older.json()["digest"] == first
    refused(await api.client.post("/v1/adapters/none:verify"), 404, "adapter_not_found", "adapter")
    refused(await api.client.get("/v1/adapters/mine:verify"), 400, "invalid_request", "name")


async def test_verifications_come_one_at_a_time(api: Api) -> None:
    await publish(api, "mine", 0.1)
    api.engine.pause()
    running = asyncio.create_task(api.client.post("/v1/adapters/mine:verify"))
    await until(lambda: bool(api.engine.verified))
    card = (await api.client.get("/v1/adapters/mine")).json()
    assert card["residency"]["in_flight"] == 1
    refused(await api.client.post("/v1/adapters/mine:verify"), 503, "overloaded", None)
    api.engine.resume()
    assert (await running).json()["holds"]
    assert (await api.client.post("/v1/adapters/mine:verify")).status_code == 200


async def test_a_multitask_adapter_is_preloaded_and_verified_by_its_first_task(api: Api) -> None:
    assert (await api.publish("mine", folders.multitask(3))).status_code == 201
    assert (await put(api, "mine/residency", {"pinned": True})).json()["state"] == "kv"
    assert (await api.client.post("/v1/adapters/mine:verify")).status_code == 200
    assert api.engine.submitted[-1].adapter.key.task == api.engine.verified[-1][2].key.task == 0
