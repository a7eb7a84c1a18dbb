"""What this machine offers: cores, memory, number formats, a GPU. Read from the system, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory; `cuda` is whether a GPU and a torch that can use it are both there."""

    cores: int
    memory: int
    bfloat16: bool  # the CPU multiplies bfloat16 in hardware
    cuda: bool
    gpu_memory: int

    def __str__(self) -> str:
        gpu = f", GPU with {self.gpu_memory / 2**30:.0f} GiB" if self.cuda else ""
        return f"{self.cores} cores, {self.memory / 2**30:.1f} GiB{gpu}"


def read_machine() -> Machine:
    """Look at the machine that this process runs on, within the limits of its container."""
    gpu_memory = _gpu_memory()
    return Machine(
        cores=_cores(),
        memory=_memory(),
        bfloat16=_has_bfloat16(),
        cuda=gpu_memory > 0 and _torch_has_cuda(),
        gpu_memory=gpu_memory,
    )


def _cores() -> int:
    available = len(os.sched_getaffinity(0))
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        available = min(available, max(1, int(quota) // int(period)))
    return available


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(_CGROUP / "memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _has_bfloat16() -> bool:
    flags = _read(Path("/proc/cpuinfo"))
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _torch_has_cuda() -> bool:
    try:
        return "+cpu" not in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False


def _gpu_memory() -> int:
    """Bytes of the first GPU, 0 where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None or not Path("/proc/driver/nvidia/version").exists():
        return 0
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        return int(answer.split()[0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
