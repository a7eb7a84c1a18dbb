"""Where and with what a result was measured: the machine, versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
"""What decides which kernels run."""


def machine() -> dict[str, Any]:
    """Return the processor's name, cores, the instruction sets that matter, and memory in bytes."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_model": " ".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cache": fields.get("cache size", ""),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(peers: dict[str, str]) -> dict[str, str]:
    """Return versions of what takes part; `peers` have environments of their own."""
    ours = {name: metadata.version(name) for name in ("waybill", "torch", "transformers", "peft", "uvicorn", "uvloop")}
    return {"python": platform.python_version(), **ours, **peers}


def commit(root: Path) -> str:
    """Return the commit, with `+` where the working tree differs from it; `unknown` outside a git checkout."""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
