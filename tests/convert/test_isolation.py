"""The child that reads can do nothing else; the folder is whole or not there; which file is meant is found by name."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from server.convert.isolation import convert_file
from server.convert.sources import SourceKind
from server.errors import AdapterRejected, InvalidRequest
from tests.convert.tools import converted, kobold_zip, soft_prompt

ROOT = Path(__file__).resolve().parents[2]

LOCKED = """
import os, socket, resource, sys
from server.convert.child import lock_down
lock_down(1000)
def attempt(what):
    try:
        what()
    except (OSError, ValueError, MemoryError) as error:
        return
    sys.stdout.write("allowed\\n")
attempt(lambda: open("/etc/passwd"))
attempt(lambda: open("made", "w"))
attempt(lambda: socket.socket())
attempt(lambda: os.pipe())
attempt(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)))
attempt(lambda: bytearray(2**31))
attempt(lambda: os.fork() or os._exit(0))
sys.stdout.write(f"uid {os.getuid()}\\n")
"""
INTERRUPTED = "import sys; from server.convert.isolation import *; convert_file(Path(sys.argv[1]), Path(sys.argv[2]))"


def python(program: str, *arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start a program with nothing but the project and Python's library."""
    command = [sys.executable, "-S", "-P", "-c", program, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)}, cwd=folder, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_once_locked_down_nothing_can_be_opened_or_started(tmp_path: Path) -> None:
    with python(LOCKED, folder=tmp_path) as process:
        said, _ = process.communicate()
    assert process.returncode == 0
    assert said.splitlines() == [f"uid {os.getuid() or 65534}"]
    assert list(tmp_path.iterdir()) == []


def test_no_pickle_and_no_other_package_is_in_the_child(tmp_path: Path) -> None:
    program = "import sys, server.convert.child; print(*sys.modules)"
    with python(program, folder=tmp_path) as process:
        modules = {name.partition(".")[0] for name in process.communicate()[0].split()}
    assert modules & {"pickle", "_pickle", "marshal", "ctypes", "socket", "subprocess", "numpy", "torch"} <= {"marshal"}
    assert modules - sys.stdlib_module_names - {"__main__", "typing", "server"} == set()


def test_no_module_of_the_converter_can_run_what_it_reads() -> None:
    for path in (ROOT / "server/convert").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not names & {"eval", "exec", "compile", "__import__", "getattr", "setattr", "globals"}, path.name
        assert not imported & {"pickle", "marshal", "shelve", "importlib", "torch", "numpy", "ctypes"}, path.name


def test_a_target_that_is_there_is_left_alone(tmp_path: Path) -> None:
    source = kobold_zip(soft_prompt().numpy(), tmp_path / "a.zip")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    for name in ("file", "folder", "link"):
        with pytest.raises(InvalidRequest, match=f"{name} is there already; name a folder that is not"):
            convert_file(source, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "mine"
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_target_without_a_parent_is_refused(tmp_path: Path) -> None:
    source = kobold_zip(soft_prompt().numpy(), tmp_path / "a.zip")
    with pytest.raises(InvalidRequest, match="takes no folder: No such file or directory"):
        convert_file(source, tmp_path / "not/there")
    with pytest.raises(InvalidRequest, match="takes no folder: Not a directory"):
        convert_file(source, source / "out")


def test_interrupting_leaves_nothing(tmp_path: Path) -> None:
    """A cartridge whose rows take seconds to write; Ctrl-C while they are written."""
    layers = [torch.zeros(1, 256, 2000, 2)] * 2
    parts = {f"trainable_{what}": [layer.clone() for layer in layers] for what in ("keys", "values")}
    source = tmp_path / "cache_last.pt"
    torch.save({**parts, "frozen_keys": [], "frozen_values": []}, source)
    with python(INTERRUPTED, str(source), str(tmp_path / "out"), folder=tmp_path) as process:
        while process.poll() is None and not list(tmp_path.glob(".out.*/*.safetensors")):
            time.sleep(0.01)
        assert not (tmp_path / "out").exists()
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate()[1]
    assert list(tmp_path.iterdir()) == [source]


def test_the_kind_can_be_said(tmp_path: Path) -> None:
    torch.save(soft_prompt(), tmp_path / "mine.pt")
    with pytest.raises(
        InvalidRequest, match=r"mine\.pt is no known name .* --kind peft-bin \| tgis \| cartridge \| kob"
    ):
        converted(tmp_path / "mine.pt")
    assert convert_file(tmp_path / "mine.pt", tmp_path / "out", SourceKind.TGIS).source.kind is SourceKind.TGIS
    with pytest.raises(AdapterRejected, match="it holds no dict; a cartridge is one"):
        convert_file(tmp_path / "mine.pt", tmp_path / "again", SourceKind.CARTRIDGE)


def test_a_folder_needs_one_file_of_a_known_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has none; name one file"):
        converted(tmp_path)
    for name in ("cache-step1.pt", "cache-step2.pt"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidRequest, match=r"has 2: cache-step1\.pt, cache-step2\.pt; name one file"):
        converted(tmp_path)


def test_what_needs_no_converting_is_said(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(InvalidRequest, match="is what the server takes already: publish its folder as it is"):
            converted(path)


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "decoder.pt")
    for name in ("decoder.pt", "missing.zip"):
        with pytest.raises(InvalidRequest, match="is no file or folder that can be read"):
            converted(tmp_path / name)
