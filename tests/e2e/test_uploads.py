"""Uploads that only the engine can judge, and that whatever is refused leaves no trace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.core import AdapterKind
from tests.e2e.conftest import upload
from tests.e2e.folders import write_folder
from tests.e2e.running import MODEL, ROOT, RunningServer


def spoil(folder: Path, change: Callable[[Tensor], None]) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors["prompt_embeddings"])
    save_file(tensors, path)
    return folder


def put(value: float) -> Callable[[Tensor], None]:
    def change(table: Tensor) -> None:
        table[2, 7] = value

    return change


def loud(table: Tensor) -> None:
    table[3] *= 1e8


def traces(server: RunningServer, store: Path) -> tuple[list[str], float, float, float]:
    files = sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    gauges = ("waybill_resident_adapters", "waybill_prefix_blocks_used", "waybill_kv_blocks_used")
    return files, *(server.metric(name) for name in gauges)


@pytest.mark.parametrize("kind", [AdapterKind.PROMPT_TUNING, AdapterKind.PREFIX_TUNING])
@pytest.mark.parametrize(
    ("change", "reason"),
    [(put(float("nan")), "NaN or infinite"), (put(float("inf")), "NaN or infinite"), (loud, "10,000 times")],
    ids=["nan", "inf", "loud"],
)
def test_bad_values_are_refused_without_a_trace(
    shared_server: RunningServer, tmp_path: Path, kind: AdapterKind, change: Callable[[Tensor], None], reason: str
) -> None:
    store = Path(shared_server.log).parent / "store"
    before = traces(shared_server, store)
    folder = spoil(write_folder(tmp_path / "bad", kind, 5, 3), change)
    files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    with shared_server.client() as client:
        reply = client.post("/v1/adapters", data={"name": "bad"}, files=files)
        assert reply.status_code == 422, reply.text
        assert reply.json()["error"]["code"] == "adapter_invalid"
        assert reason in reply.json()["error"]["message"]
        assert client.get("/v1/adapters/bad").status_code == 404
        client.post("/v1/generate", json={"prompt": "Hi", "max_tokens": 1})  # a step, which reports the gauges
    assert traces(shared_server, store) == before


def test_a_dry_run_publishes_nothing(shared_server: RunningServer, tmp_path: Path) -> None:
    store = Path(shared_server.log).parent / "store"
    before = traces(shared_server, store)
    folder = write_folder(tmp_path / "dry", AdapterKind.P_TUNING, 5, 3)
    with shared_server.client() as client:
        reply = upload(client, "dry", folder, dry_run="true")
        assert reply.json()["digest"].startswith("sha256:")
        assert client.get("/v1/adapters/dry").status_code == 404
        client.post("/v1/generate", json={"prompt": "Hi", "max_tokens": 1})
    assert traces(shared_server, store) == before


def test_a_folder_published_without_http_is_served_within_two_seconds(
    shared_server: RunningServer, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "aside", AdapterKind.PROMPT_TUNING, 5, 3)
    store = Path(shared_server.log).parent / "store"
    with shared_server.client() as client:
        request = {"prompt": "Hi", "adapter": "aside", "max_tokens": 2}
        assert client.post("/v1/generate", json=request).status_code == 404
        command = [sys.executable, "-m", "server", "adapters", "add", str(folder), "--name", "aside"]
        subprocess.run([*command, "--store", str(store), "--model", str(MODEL)], check=True, cwd=ROOT)
        published = time.monotonic()
        while (reply := client.post("/v1/generate", json=request)).status_code != 200:
            assert time.monotonic() - published < 2.5, reply.text
            time.sleep(0.05)
        first = reply.json()["adapter"]
        # A second version: the name is trusted for two seconds, then it is the new one.
        other = write_folder(tmp_path / "aside2", AdapterKind.PROMPT_TUNING, 6, 4)
        command[5] = str(other)
        subprocess.run([*command, "--store", str(store), "--model", str(MODEL)], check=True, cwd=ROOT)
        published = time.monotonic()
        while (now := client.post("/v1/generate", json=request).json()["adapter"]) == first:
            assert time.monotonic() - published < 2.5
            time.sleep(0.05)
        assert (first["version"], now["version"]) == ("v1", "v2")
        pinned = client.post("/v1/generate", json=request | {"adapter": "aside@v1"}).json()["adapter"]
        assert pinned == first
        client.delete("/v1/adapters/aside")
        assert client.post("/v1/generate", json=request).status_code == 404


def test_the_same_bytes_again_are_the_same_version(shared_server: RunningServer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "twice", AdapterKind.CPT, 5, 3)
    with shared_server.client() as client:
        first, again = upload(client, "twice", folder), upload(client, "twice", folder)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["digest"] == again.json()["digest"]
        assert again.json()["version"] == "v1"
        client.delete("/v1/adapters/twice")


def test_a_delete_lets_what_runs_finish(shared_server: RunningServer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "gone", AdapterKind.PREFIX_TUNING, 5, 3)
    with shared_server.client() as client, shared_server.client() as other:
        upload(client, "gone", folder)
        request = {"prompt": "Once", "adapter": "gone", "max_tokens": 40, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/generate", json=request) as reply:
            lines = reply.iter_lines()
            next(lines)
            assert other.delete("/v1/adapters/gone").status_code in (200, 204)
            assert other.post("/v1/generate", json={"prompt": "x", "adapter": "gone"}).status_code == 404
            rest = list(lines)
        assert '"finish_reason":"length"' in "".join(rest).replace(" ", "")
        assert rest[-2:] == ["data: [DONE]", ""]


def test_foreign_hosts_are_refused_without_keys(shared_server: RunningServer) -> None:
    reply = httpx.get(f"{shared_server.url}/v1/models", headers={"Host": "evil.example"})
    assert reply.status_code == 400


def test_a_probe_is_run(shared_server: RunningServer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "probed", AdapterKind.CARTRIDGE, 6, 3)
    ids = [504, 3575, 282]
    with shared_server.client() as client:
        upload(client, "unprobed", folder)
        request = {"prompt": ids, "adapter": "unprobed", "max_tokens": 4, "ignore_eos": True, "return_token_ids": True}
        greedy = client.post("/v1/generate", json=request).json()["choices"][0]["token_ids"]
        client.delete("/v1/adapters/unprobed")
        sidecar = {"version": 1, "probe": {"input_ids": ids, "greedy": greedy}}
        (folder / "waybill.json").write_text(json.dumps(sidecar))
        upload(client, "probed", folder, dry_run="true")
        sidecar["probe"] = {"input_ids": ids, "greedy": [*greedy[:-1], (greedy[-1] + 1) % 49152]}
        (folder / "waybill.json").write_text(json.dumps(sidecar))
        files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
        reply = client.post("/v1/adapters", data={"name": "probed"}, files=files)
        assert reply.status_code == 422
        assert "probe should be followed by" in reply.json()["error"]["message"]


def test_every_kind_computes_what_the_base_model_alone_does(shared_server: RunningServer) -> None:
    with shared_server.client() as client:
        for name in (*(f"a{number}" for number in range(len(AdapterKind))), "a12"):  # the last has a template
            answer = client.post(f"/v1/adapters/{name}:verify", timeout=60)
            assert answer.status_code == 200, (name, answer.text)
            found = answer.json()
            assert found["holds"], (name, found["error"], found["allowed"], found["same_tokens"], found["positions"])
            assert found["positions"] == found["same_tokens"] > 16
