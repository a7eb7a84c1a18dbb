"""The room imports no torch, so that it can be tested and read alone."""

from __future__ import annotations

import subprocess
import sys


def test_the_room_leaves_torch_out() -> None:
    code = (
        "import sys, server.engine.scheduler.scheduler; "
        "print([name for name in ('torch', 'transformers', 'numpy', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
