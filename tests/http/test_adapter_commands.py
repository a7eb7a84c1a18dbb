"""`waybill adapters …` against a server that listens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import cli
from server.core import Parity
from tests.http import folders
from tests.http.conftest import Api, MakeApi


class Commands:
    """Runs commands in a thread, while the server runs in this loop."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.url = str(api.client.base_url)

    async def run(self, *words: str, ends: int = 0) -> str:
        """Return what a command printed."""
        runner = CliRunner()
        command = ["adapters", *words, "--url", self.url]
        result = await asyncio.to_thread(runner.invoke, cli, command, catch_exceptions=False)
        assert result.exit_code == ends, result.output
        return result.stdout if ends == 0 else result.stderr

    async def json(self, *words: str) -> Any:
        """Return the JSON that a command printed."""
        return json.loads(await self.run(*words, "--json"))


@pytest.fixture
async def commands(make_api: MakeApi) -> Commands:
    return Commands(await make_api(listen=True))


def folder(path: Path, files: dict[str, bytes]) -> str:
    """Write an adapter's folder."""
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return str(path)


async def test_a_life_by_commands(commands: Commands, tmp_path: Path) -> None:
    first = folder(tmp_path / "a", folders.soft_prompt(value=0.1))
    second = folder(tmp_path / "b", folders.soft_prompt(value=0.2))
    card = await commands.json("push", first, "mine", "--alias", "prod")
    assert (card["version"], card["tenant"]) == ("v1", "default")
    assert "would be taken" in await commands.run("push", second, "mine", "--dry-run")
    assert "mine@v2 published: sha256:" in await commands.run("push", second, "mine")
    assert "is there already" in await commands.run("push", second, "mine")
    assert await commands.json("promote", "mine", "2") == {
        "alias": "prod", "before": "v1", "version": "v2", "revision": 4,
    }  # fmt: skip
    assert "mine@prod means v1; before: v2" in await commands.run("rollback", "mine")
    shown = await commands.json("show", "mine")
    assert (shown["aliases"], [v["version"] for v in shown["versions"]]) == (
        {"latest": "v2", "prod": "v1"},
        ["v2", "v1"],
    )
    assert "is pinned, in kv" in await commands.run("pin", "mine@prod")
    listed = await commands.json("ls")
    assert [(card["name"], card["residency"]["pinned"]) for card in listed] == [("mine", False)]
    table = await commands.run("ls", "--kind", "prompt_tuning")
    assert "default/mine" in table
    assert "prod=v1" in table
    assert "is not pinned" in await commands.run("pin", "mine@prod", "--off")
    pulled = await commands.json("pull", "mine@prod", str(tmp_path / "pulled"))
    assert pulled["digest"] == card["digest"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()} == folders.soft_prompt(value=0.1)
    assert "v2 is deleted" not in await commands.run("rm", "mine@v2", "--yes", ends=2)
    await commands.run("promote", "mine", "v1", "--alias", "latest")
    assert "mine@v2 is deleted" in await commands.run("rm", "mine@v2", "--yes")
    assert "with all its versions is deleted" in await commands.run("rm", "mine", "--yes")
    assert await commands.json("ls") == []


async def test_an_adapter_that_differs_ends_the_command_with_one(commands: Commands, tmp_path: Path) -> None:
    await commands.run("push", folder(tmp_path / "a", folders.soft_prompt()), "mine")
    assert (await commands.json("verify", "default/mine@v1"))["version"] == "v1"
    said = await commands.run("verify", "mine")
    assert "default/mine@v1 computes what it should: off by 2e-05 in float32 (0.0003 is allowed), 9 of 9" in said
    commands.api.engine.parity = Parity(9, 5, largest=1.0, deviation=3.0, error=1.0, allowed=3e-4)
    runner = CliRunner()
    words = ["adapters", "verify", "mine", "--url", commands.url]
    result = await asyncio.to_thread(runner.invoke, cli, words)
    assert (result.exit_code, "DIFFERS" in result.stdout) == (1, True)


async def test_a_zip_is_pushed_too(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(folders.zipped(folders.soft_prompt()))
    assert (await commands.json("push", str(tmp_path / "mine.zip"), "mine"))["version"] == "v1"


async def test_what_goes_wrong_is_said_in_one_line(commands: Commands, tmp_path: Path) -> None:
    bad = folder(tmp_path / "bad", {**folders.soft_prompt(), "adapter_model.bin": b"x"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    for words, reason in (
        (("push", bad, "mine"), "pickle"),
        (("push", str(tmp_path / "empty"), "mine"), "is empty"),
        (("show", "nobody"), "there is no adapter 'nobody' (adapter_not_found)"),
        (("pull", "nobody", str(tmp_path / "x")), "there is no adapter 'nobody"),
        (("pull", "mine", str(tmp_path / "there")), "is there already"),
        (("rollback", "nobody"), "there is no adapter"),
        (("rm", "nobody", "--yes"), "there is no adapter"),
    ):
        said = await commands.run(*words, ends=2)
        assert reason in said
        assert said.startswith("waybill: ")
        assert said.count("\n") == 1
    assert not (tmp_path / "x").exists()
    commands.url = "http://127.0.0.1:9"
    assert "no answer from http://127.0.0.1:9" in await commands.run("ls", ends=2)


async def test_a_lost_race_is_told(commands: Commands, tmp_path: Path) -> None:
    source = folder(tmp_path / "a", folders.soft_prompt())
    await commands.run("push", source, "mine")
    await commands.run("promote", "mine", "1", "--if-revision", "1")
    said = await commands.run("promote", "mine", "1", "--if-revision", "1", "--alias", "test", ends=2)
    assert "is at revision 2, not 1" in said
