"""The card, what it runs, and its two ceilings: copying and multiplying."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

import torch
import transformers

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import milliseconds


def run(setting: Setting) -> dict[str, Any]:
    """Return card, versions, bytes per second of a large copy (read and written), and bf16 operations per second."""
    device = setting.device
    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if device.type == "cuda" else "none",
        "driver": _driver(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": _triton(),
        "python": platform.python_version(),
    }
    count = 2**12 if setting.dry else 2**32
    source = torch.empty(count, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    found["copy_tb_s"] = 2 * count / milliseconds(lambda: target.copy_(source), device) / 1e9
    size = 64 if setting.dry else 8192
    left, right = (torch.randn((size, size), device=device, dtype=torch.bfloat16) for _ in range(2))
    found["matmul_tflop_s"] = 2 * size**3 / milliseconds(lambda: left @ right, device) / 1e9
    setting.facts["copy_tb_s"] = found["copy_tb_s"]
    return found


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _triton() -> str:
    import triton

    return str(triton.__version__)
