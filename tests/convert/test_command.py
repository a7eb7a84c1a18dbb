"""`waybill convert`, and the folder it makes published by `waybill adapters add`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from server.cli import cli
from tests.convert.hostile import CODE, written
from tests.convert.tools import caikit_decoder, kobold_zip, soft_prompt
from tests.tiny_models import tiny_model


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of the command."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_what_was_made_is_told_and_can_be_published(tmp_path: Path) -> None:
    source = caikit_decoder(soft_prompt(), tmp_path / "caikit")
    status, out, err = run("convert", source.parent, tmp_path / "mine")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'mine'}: PROMPT_TUNING, 5 virtual tokens, [5, 32] F32\n"
    tiny_model("llama").save_pretrained(tmp_path / "model")
    store = ("--store", tmp_path / "store", "--model", tmp_path / "model")
    status, out, err = run("adapters", "add", tmp_path / "mine", "--name", "mine", *store)
    assert status == 0, err
    assert out.startswith("default/mine@v1 published: sha256:")


def test_json_tells_all(tmp_path: Path) -> None:
    source = kobold_zip(soft_prompt().numpy(), tmp_path / "tale.zip")
    status, out, _ = run("convert", source, tmp_path / "mine", "--json")
    assert status == 0
    assert json.loads(out) == {
        "folder": str(tmp_path / "mine"),
        "source": str(source),
        "source_kind": "koboldai",
        "kind": "prompt_tuning",
        "num_virtual_tokens": 5,
        "shape": [5, 32],
        "dtype": "F32",
        "notes": ["name: 'Tale'", "author: 'A. Writer'", 'description: "a tale\'s voice"', "supported: ['Generic 6B']"],
    }


def test_notes_stand_beside_the_answer(tmp_path: Path) -> None:
    source = kobold_zip(soft_prompt().numpy(), tmp_path / "tale.zip")
    _, out, err = run("convert", source, tmp_path / "mine")
    assert "note: name: 'Tale'\n" in err
    assert "Tale" not in out


def test_a_refusal_is_one_line_and_status_2(tmp_path: Path) -> None:
    path = written(CODE["os.system"], tmp_path)
    status, out, err = run("convert", path, tmp_path / "mine")
    assert (status, out) == (2, "")
    assert err.startswith("waybill: decoder.pt: it names 'posix.system', which no file of tensors needs")
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["peft-bin", "tgis", "cartridge", "koboldai"])
def test_help_names_every_kind(kind: str) -> None:
    status, out, _ = run("convert", "--help")
    assert status == 0
    assert kind in out


def test_a_kind_that_is_none_is_refused(tmp_path: Path) -> None:
    torch.save(soft_prompt(), tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "mine", "--kind", "nemo")[0] == 2
