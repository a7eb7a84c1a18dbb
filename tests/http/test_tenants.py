"""Keys and tenants: who may come in, and what each can see."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import stat
from pathlib import Path

import pytest

from server.errors import InvalidRequest, Unauthorized
from server.formats.base import read_base_model
from server.formats.judge import AdapterLimits
from server.service.publishing import publish_folder
from server.service.tenants import KeyRing, Tenant, add_first_key, add_key
from server.store.opening import local_store
from tests.http import folders
from tests.http.conftest import Api, MakeApi
from tests.http.test_bad_requests import refused


@pytest.fixture
async def keyed(make_api: MakeApi, tmp_path: Path) -> Api:
    """A server with keys; its client sends none by itself."""
    keys = tmp_path / "keys.json"
    api = await make_api(keys=keys)
    api.keys = {tenant: add_key(keys, tenant) for tenant in ("acme", "globex")}
    return api


OF_ONE: list[tuple[str, str, dict[str, object] | None]] = [
    ("GET", "", None),
    ("PATCH", "", {"description": "mine now"}),
    ("DELETE", "", None),
    ("GET", "/versions", None),
    ("GET", "/versions/v1", None),
    ("DELETE", "/versions/v1", None),
    ("GET", "/versions/v1/download", None),
    ("PUT", "/aliases/prod", {"version": 1}),
    ("DELETE", "/aliases/prod", None),
    ("POST", "/aliases/latest:rollback", None),
    ("GET", "/residency", None),
    ("PUT", "/residency", {"pinned": True}),
    ("POST", ":verify", None),
]
"""Every route of an adapter's name."""


def changes(method: str, path: str) -> bool:
    """Whether a route changes the adapter; others are for all who can use it."""
    return method != "GET" and path != ":verify"


def as_tenant(api: Api, tenant: str) -> Api:
    """The same server, asked by a tenant."""
    client = type(api.client)(transport=api.client._transport, base_url=api.client.base_url)
    client.headers["Authorization"] = f"Bearer {api.keys[tenant]}"
    return Api(api.app, api.engine, client, api.store, api.keys)


def publish_public(store: Path, model: Path, work: Path, name: str) -> None:
    """Publish a soft prompt for everybody, as an operator does."""
    work.mkdir()
    for file, data in folders.soft_prompt(value=0.125).items():
        (work / file).write_bytes(data)
    publish_folder(local_store(store), work, "public", name, read_base_model(model), AdapterLimits())
    shutil.rmtree(work)


async def test_every_route_but_probes_and_metrics_needs_a_key(keyed: Api) -> None:
    document = (await keyed.client.get("/openapi.json")).json()
    open_to_all = {"/health/live", "/health/ready", "/health", "/ping", "/metrics"}
    asked = 0
    for path, methods in document["paths"].items():
        for method in methods:
            response = await keyed.client.request(method, re.sub("{[a-z]+}", "x", path))
            if path in open_to_all:
                assert response.status_code == 200, path
                continue
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            if path.startswith("/v1/"):
                refused(response, 401, "invalid_api_key", None)
            asked += 1
    assert asked == 27


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer x", "Basic abc", "Bearer wb_aaaaaaaa_" + "b" * 43, "Bearer wb_" + "a" * 9000, "Bearer wb_é"],
)
async def test_a_bad_key_is_401(keyed: Api, header: str) -> None:
    headers = {"Authorization": header.encode()} if header else {}
    response = await keyed.client.post("/v1/generate", json={"prompt": "x"}, headers=headers)
    refused(response, 401, "invalid_api_key", None)


async def test_a_key_with_another_secret_is_401(keyed: Api) -> None:
    key = keyed.keys["acme"]
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    response = await keyed.client.get("/v1/models", headers={"Authorization": f"Bearer {wrong}"})
    refused(response, 401, "invalid_api_key", None)
    response = await keyed.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 200


async def test_the_key_is_asked_for_before_the_body_is_read(keyed: Api) -> None:
    refused(await keyed.client.post("/v1/generate", content=b"x" * 2**20), 401, "invalid_api_key", None)


async def test_another_tenants_adapter_is_as_unknown_as_none(keyed: Api) -> None:
    acme, globex = as_tenant(keyed, "acme"), as_tenant(keyed, "globex")
    card = (await acme.publish("mine", folders.soft_prompt())).json()
    assert card["tenant"] == "acme"
    assert (await acme.generate(adapter="acme/mine", prompt="x", max_tokens=1)).status_code == 200
    for reference in ("mine", "acme/mine", "acme/mine@v1", f"mine@{card['digest']}"):
        theirs = refused(await globex.generate(adapter=reference, prompt="x"), 404, "adapter_not_found", "adapter")
        absent = reference.replace("mine", "none")
        nobodys = refused(await globex.generate(adapter=absent, prompt="x"), 404, "adapter_not_found", "adapter")
        assert theirs.replace("mine", "none") == nobodys
    for method, path, body in OF_ONE:
        for query in ("", "?tenant=acme"):
            answer = await globex.client.request(method, f"/v1/adapters/mine{path}{query}", json=body)
            if query and changes(method, path):
                refused(answer, 400, "invalid_request", "tenant")  # only one's own can be changed
            else:
                refused(answer, 404, "adapter_not_found", "adapter")
    refused(await globex.client.get("/v1/adapters?tenant=acme"), 404, "adapter_not_found", "tenant")
    assert (await globex.client.get("/v1/adapters")).json()["data"] == []
    assert (await acme.client.get("/v1/adapters/mine")).status_code == 200
    assert globex.engine.submitted[-1].adapter is not None


async def test_what_was_computed_is_shared_within_a_tenant_only(keyed: Api, model: Path, tmp_path: Path) -> None:
    publish_public(keyed.store, model, tmp_path / "work", "shared")
    for tenant in ("acme", "globex", "acme"):
        await as_tenant(keyed, tenant).generate(adapter="shared", prompt="x", max_tokens=1)
        await as_tenant(keyed, tenant).generate(prompt="x", max_tokens=1)
    salts = [stream.salt for stream in keyed.engine.submitted]
    assert salts == ["acme", "acme", "globex", "globex", "acme", "acme"]


async def test_public_adapters_are_for_all_and_own_ones_come_first(keyed: Api, model: Path, tmp_path: Path) -> None:
    publish_public(keyed.store, model, tmp_path / "work", "shared")
    acme, globex = as_tenant(keyed, "acme"), as_tenant(keyed, "globex")
    for tenant in (acme, globex):
        reply = (await tenant.generate(adapter="shared", prompt="x", max_tokens=1)).json()
        assert reply["adapter"]["name"] == "shared"
        refused(await tenant.client.delete("/v1/adapters/shared"), 404, "adapter_not_found", "adapter")
        for method, path, body in OF_ONE:
            answer = await tenant.client.request(method, f"/v1/adapters/shared{path}", json=body)
            if not changes(method, path):
                assert answer.status_code == 200, path
            else:
                refused(answer, 404, "adapter_not_found", "adapter")
    own = (await acme.publish("shared", folders.soft_prompt())).json()
    assert (await acme.generate(adapter="shared", prompt="x")).json()["adapter"]["digest"] == own["digest"]
    for tenant, reference in ((acme, "public/shared"), (globex, "shared")):
        reply = (await tenant.generate(adapter=reference, prompt="x", max_tokens=1)).json()
        assert reply["adapter"]["digest"] != own["digest"]
    listed = (await acme.client.get("/v1/adapters")).json()["data"]
    assert [(card["tenant"], card["name"]) for card in listed] == [("acme", "shared"), ("public", "shared")]


async def test_a_published_folder_is_seen_by_a_running_server(api: Api, model: Path, tmp_path: Path) -> None:
    refused(await api.generate(adapter="late", prompt="x"), 404, "adapter_not_found", "adapter")
    publish_public(api.store, model, tmp_path / "work", "late")
    assert (await api.generate(adapter="late", prompt="x", max_tokens=1)).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "127.9.9.9"])
async def test_without_keys_loopback_hosts_are_answered(api: Api, host: str) -> None:
    assert (await api.client.get("/health/live", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::2]", "0.0.0.0", "", "a:b:c"]
)
async def test_without_keys_other_hosts_are_refused(api: Api, host: str) -> None:
    response = await api.client.post("/v1/generate", json={"prompt": "x"}, headers={"Host": host})
    refused(response, 400, "invalid_request", "Host")
    assert api.engine.submitted == []


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example:8000"])
async def test_without_keys_pages_of_others_are_refused(api: Api, origin: str) -> None:
    response = await api.client.post("/v1/generate", json={"prompt": "x"}, headers={"Origin": origin})
    refused(response, 400, "invalid_request", "Origin")
    own = {"Origin": "http://localhost:8000"}
    response = await api.client.post("/v1/generate", json={"prompt": "x", "max_tokens": 1}, headers=own)
    assert response.status_code == 200


async def test_with_keys_any_host_will_do(keyed: Api) -> None:
    assert (await keyed.client.get("/health/live", headers={"Host": "llm.example"})).status_code == 200


def test_the_file_holds_hashes_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    key = add_key(path, "acme")
    second = add_key(path, "acme")
    assert key != second
    text = path.read_text()
    assert key not in text
    assert key.split("_")[2] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [record["tenant"] for record in json.loads(text)["keys"]] == ["acme", "acme"]
    ring = KeyRing(path)
    assert ring.authenticate(f"Bearer {key}").name == "acme"
    assert ring.authenticate(f"bearer {second}") == Tenant("acme", second.split("_")[1])


@pytest.mark.parametrize("tenant", ["public", "A", "", "a/b", "../x", "a b"])
def test_some_names_cannot_be_tenants(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(InvalidRequest):
        add_key(tmp_path / "keys.json", tenant)
    assert not (tmp_path / "keys.json").exists()


def test_the_first_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert add_first_key(path, "acme") is not None
    assert add_first_key(path, "acme") is None


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    now = 0.0
    ring = KeyRing(path, clock=lambda: now)
    with pytest.raises(Unauthorized):
        ring.authenticate("Bearer wb_aaaaaaaa_" + "a" * 43)
    key = add_key(path, "acme")
    now = 2.0
    assert ring.authenticate(f"Bearer {key}").name == "acme"
    path.write_text('{"keys": []}')
    now = 4.0
    with pytest.raises(Unauthorized):
        ring.authenticate(f"Bearer {key}")


def test_a_broken_file_keeps_the_keys_that_were_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    now = 0.0
    ring = KeyRing(path, clock=lambda: now)
    key = add_key(path, "acme")
    ring.authenticate(f"Bearer {key}")
    path.write_text("{")
    now = 2.0
    assert ring.authenticate(f"Bearer {key}").name == "acme"


async def test_keys_can_be_added_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    await asyncio.gather(*(asyncio.to_thread(add_key, path, f"t{i}") for i in range(8)))
    assert len(json.loads(path.read_text())["keys"]) == 8
