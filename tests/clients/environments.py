"""A virtual environment for each client: made once from its requirements, and kept in an ignored folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.running import ROOT

FOLDER = ROOT / ".clients"


def environment(requirements: Path | None) -> Path:
    """Return the Python of an environment that has these requirements; it is made again whenever they change.

    None stands for this one: what it needs is among the development tools.
    """
    if requirements is None:
        return Path(sys.executable)
    home = FOLDER / requirements.stem
    stamp = home / ".installed"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    python = home / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(home))
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(str(python), *pip, "--requirement", str(requirements))
        stamp.write_text(wanted)
    return python


def run_script(python: Path, script: Path, *arguments: str, folder: Path) -> str:
    """Run a client's script and return what it printed. It sees `tests/clients` and nothing else of ours."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "SSL_CERT_FILE")}
    environment = kept | {
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parent),
        "NO_PROXY": "*",
        # None of them has to ask anybody but the server.
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(
        [str(python), "-W", "ignore", str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
