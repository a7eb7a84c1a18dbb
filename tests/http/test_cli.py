"""The `waybill` command: what it prints, what it refuses, and that it drains."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import cli
from server.service.tenants import KeyRing, add_key
from server.settings import Settings
from tests.http import folders

runner = CliRunner()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WAYBILL_{name.upper()}", raising=False)


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command; return its exit status, stdout and stderr."""
    result = runner.invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def adapter_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    """A folder that PEFT saved."""
    folder = tmp_path / "saved"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_every_setting_is_a_flag() -> None:
    status, out, _ = run("serve", "--help")
    assert status == 0
    flags = set(re.findall(r"--[a-z-]+", out))
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= flags
    assert "--create-first-key" in flags


def test_a_key_is_printed_once_and_works(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    status, out, _ = run("keys", "add", "acme", "--keys", path)
    assert status == 0
    assert KeyRing(path).authenticate(f"Bearer {out.strip()}").name == "acme"


def test_keys_need_a_file_and_a_tenant_that_can_be(tmp_path: Path) -> None:
    assert run("keys", "add", "acme")[0] == 2
    status, _, err = run("keys", "add", "public", "--keys", tmp_path / "keys.json")
    assert status == 2
    assert "reserved" in err
    (tmp_path / "broken.json").write_text("{")
    assert "not a keys file" in run("keys", "add", "acme", "--keys", tmp_path / "broken.json")[2]


def test_a_folder_is_published_once(tmp_path: Path, model: Path) -> None:
    folder = adapter_folder(tmp_path, folders.soft_prompt())
    common = ("--name", "mine", "--store", tmp_path / "store", "--model", model)
    status, out, err = run("adapters", "add", folder, *common)
    assert status == 0, err
    assert "default/mine@v1 published: sha256:" in out
    assert "is there already" in run("adapters", "add", folder, *common)[1]
    assert "public/mine@v1" in run("adapters", "add", folder, *common, "--tenant", "public")[1]
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_bad_folder_is_refused_with_the_reason(tmp_path: Path, model: Path) -> None:
    store = tmp_path / "store"
    folder = adapter_folder(tmp_path, {**folders.soft_prompt(), "optimizer.pt": b"x"})
    status, _, err = run("adapters", "add", folder, "--name", "mine", "--store", store, "--model", model)
    assert status == 2
    assert "optimizer.pt" in err
    assert not [path for path in store.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "API keys are needed"),
        (("--port", "99999"), "port"),
        (("--kv-memory", "lots"), "kv_memory"),
        (("--dtype", "int3"), "dtype"),
        (("--create-first-key", "acme"), "--keys"),
        (("--model", "/no/such/folder"), "/no/such/folder"),
    ],
)
def test_serve_refuses_with_the_reason(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    status, _, err = run("serve", "--store", tmp_path / "store", *arguments)
    assert status == 2
    assert words in err


def test_serve_refuses_to_be_reachable_without_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    status, _, err = run("serve", "--host", "0.0.0.0", "--keys", keys, "--model", "/no/such/folder")
    assert status == 2
    assert "holds no API key" in err


def test_serve_makes_the_first_key_once(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    arguments = (
        "serve",
        "--host",
        "0.0.0.0",
        "--keys",
        keys,
        "--create-first-key",
        "acme",
        "--model",
        "/no/such/folder",
    )
    first = run(*arguments)[1]
    key = re.search(r"wb_\w+", first)
    assert key is not None
    assert KeyRing(keys).authenticate(f"Bearer {key[0]}").name == "acme"
    assert "wb_" not in run(*arguments)[1]
    add_key(keys, "globex")


def test_serve_says_when_the_port_is_taken(tmp_path: Path, model: Path) -> None:
    from server.serving import bind

    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = run("serve", "--port", port, "--store", tmp_path / "store", "--model", model)
    assert status == 2
    assert "in use" in err


@pytest.mark.parametrize("url", ["ftp://host/x", "https://example.com/x"])
def test_serve_and_add_refuse_a_store_that_is_none(url: str, tmp_path: Path, model: Path) -> None:
    folder = adapter_folder(tmp_path, folders.soft_prompt())
    for command in (("serve", "--port", 0), ("adapters", "add", folder, "--name", "mine")):
        status, _, err = run(*command, "--model", model, "--store", url)
        assert status == 2
        assert "a store is a folder, or a URL that begins with s3://" in err


def test_sigterm_drains_and_exits_with_0(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.http.serve_fake", str(model), str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("answering"), said
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert rest.split() == ["503", "draining", "200", "40"]
