"""Compiled libraries: where they are found, what is never loaded, and what is said where none can be had."""

from __future__ import annotations

import asyncio
import ctypes
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.core import BaseModel, EngineConfig
from server.engine.client import ProcessEngine
from server.engine.native.build import Workshop, find_compiler, usable_variants, variants
from server.engine.native.library import NativeUnavailable, load
from tests.tiny_models import VOCAB_SIZE, tiny_model

VARIANT = usable_variants()[0]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compiler(tmp_path: Path) -> str:
    """A compiler called in the same way, whose libraries can be loaded and compute nothing: ready at once."""
    source, script = tmp_path / "empty.cpp", tmp_path / "compiler"
    source.write_text(
        'extern "C" int waybill_prepare() { return 0; }\n'
        'extern "C" void* waybill_pool_create(int) { return nullptr; }\n'
    )
    script.write_text(
        "#!/bin/sh\nfor target; do :; done\n"
        f'exec {find_compiler()} -shared -fPIC -o "$target" {shlex.quote(str(source))}\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def workshop(tmp_path: Path, compiler: str) -> Workshop:
    """A workshop in which nothing is built yet."""
    return Workshop(tmp_path / "shipped", tmp_path / "home" / "cache", compiler)


def closed(workshop: Workshop) -> Workshop:
    """The same folders on a machine without a compiler."""
    return Workshop(workshop.shipped, workshop.cache, compiler=None)


def test_built_once_into_the_cache(workshop: Workshop) -> None:
    library = load(1, workshop=workshop)
    assert library.isa == VARIANT.name
    assert library.path.parent == workshop.cache
    assert load(1, workshop=closed(workshop)).path == library.path


def test_what_came_with_the_package_goes_before_the_cache(workshop: Workshop) -> None:
    load(1, workshop=workshop)
    shipped = workshop.build(VARIANT, workshop.shipped)
    assert load(1, workshop=closed(workshop)).path == shipped


def test_a_library_of_other_sources_is_not_used(workshop: Workshop) -> None:
    assert workshop.cache is not None
    built = workshop.build(VARIANT)
    stem, _, digest = built.stem.rpartition("-")
    built.rename(built.with_name(f"{stem}-{digest[::-1]}.so"))
    assert workshop.find(VARIANT) is None
    with pytest.raises(NativeUnavailable):
        load(1, workshop=closed(workshop))


def test_without_a_compiler_the_reason_names_it(workshop: Workshop) -> None:
    with pytest.raises(NativeUnavailable, match=r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\)"):
        load(1, workshop=closed(workshop))


def test_a_compiler_that_fails_is_quoted(workshop: Workshop, tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho unknown flag >&2\nexit 1\n")
    failing.chmod(0o755)
    assert workshop.cache is not None
    with pytest.raises(NativeUnavailable, match="unknown flag"):
        load(1, workshop=Workshop(workshop.shipped, workshop.cache, str(failing)))
    assert list(workshop.cache.iterdir()) == []


def test_a_damaged_library_is_refused_with_its_name(workshop: Workshop) -> None:
    path = workshop.build(VARIANT)
    path.write_bytes(b"not a library")
    with pytest.raises(NativeUnavailable, match=path.name):
        load(1, VARIANT.name, closed(workshop))


def test_a_folder_that_cannot_be_written_is_named(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    with pytest.raises(NativeUnavailable, match=f"cannot be kept in {cache}"):
        load(1, workshop=Workshop(workshop.shipped, cache, workshop.compiler))


def test_a_user_without_a_home_needs_what_is_shipped(workshop: Workshop) -> None:
    homeless = Workshop(workshop.shipped, None, workshop.compiler)
    with pytest.raises(NativeUnavailable, match="no home folder"):
        load(1, workshop=homeless)
    workshop.build(VARIANT, workshop.shipped)
    assert load(1, workshop=homeless).path.parent == workshop.shipped


def test_builds_at_the_same_time_leave_one_whole_library(workshop: Workshop) -> None:
    assert workshop.cache is not None
    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(workshop.build, [VARIANT] * 8))
    assert paths == set(workshop.cache.iterdir())
    ctypes.CDLL(str(paths.pop()))


def test_all_are_built_ahead_for_a_machine_without_a_compiler(workshop: Workshop, tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "c++").symlink_to(str(workshop.compiler))
    found = build_ahead(workshop.shipped, path=f"{commands}:/usr/bin:/bin")
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(workshop.find(variant)) for variant in variants()]
    assert load(1, workshop=closed(workshop)).path.parent == workshop.shipped


def test_building_ahead_without_a_compiler_fails(workshop: Workshop) -> None:
    found = build_ahead(workshop.shipped, path=str(workshop.shipped))
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "there is no C++ compiler (c++, g++, clang++) on this machine\n"


def build_ahead(folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m server.engine.native` with these commands on the machine."""
    command = [sys.executable, "-m", "server.engine.native", "--into", str(folder)]
    return subprocess.run(command, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=False)


def start_engine(tmp_path: Path, attention: str) -> str:
    """Start an engine whose user can write nowhere, from a package that ships no libraries; return its attention."""
    package = tmp_path / "package"
    shutil.copytree(ROOT / "server", package / "server", ignore=shutil.ignore_patterns("built", "__pycache__"))
    tiny_model("llama").save_pretrained(tmp_path / "model")
    base = BaseModel("tiny", "llama", "sha256:tiny", VOCAB_SIZE, 32, 2, 2, 8, 512, ())
    config = EngineConfig(
        model_path=str(tmp_path / "model"),
        base=base,
        dtype="float32",
        device="cpu",
        attention=attention,
        kv_memory=4 * 2**20,
        prefix_memory=2 * 2**20,
        max_model_len=512,
        max_virtual_tokens=128,
        max_seqs=16,
        step_tokens=64,
        threads=1,
    )
    command = ("env", f"--chdir={package}", "HOME=/dev/null", sys.executable, "-m", "server.engine")

    async def attention_of_engine() -> str:
        engine = ProcessEngine(config, command)
        try:
            await engine.start()
            return engine.hello.attention
        finally:
            await engine.close()

    return asyncio.run(attention_of_engine())


def test_the_engine_serves_without_kernels_and_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start_engine(tmp_path, "auto") == "cpu"
    told = [line for line in capfd.readouterr().err.splitlines() if '"level": "warning"' in line]
    assert len(told) == 1
    assert "several times slower" in told[0]
    assert "cannot be kept in /dev/null/.cache/waybill/native" in told[0]


def test_the_engine_refuses_where_kernels_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"--attention native cannot be had: .*cannot be kept in /dev/null"):
        start_engine(tmp_path, "native")
