"""`python -m benchmarks.gpu`: run the parts one after the other and write down each as it ends."""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main() -> int:
    """Return 0 where every part ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="Tiny shapes on the CPU, under Triton's interpreter.")
    parser.add_argument("--part", action="append", help="Which to run; give it once for each. Default: all.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/gpu.json"))
    parser.add_argument("--commit", default="unknown", help="What is measured, where there is no git.")
    parser.add_argument("--minutes", type=float, default=9.0, help="No part begins later than this.")
    options = parser.parse_args()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

    import torch

    from benchmarks.gpu import kernels, machine, parity, peers, steps, throughput
    from benchmarks.gpu.interpreter import hasten
    from benchmarks.gpu.setting import Setting

    if options.dry_run:
        hasten()
    parts = {
        module.__name__.rpartition(".")[2]: module.run
        for module in (machine, kernels, parity, steps, throughput, peers)
    }
    chosen = options.part or list(parts)
    parts["tune"] = kernels.tune  # only where asked for
    device = torch.device("cpu" if options.dry_run else "cuda")
    if options.dry_run:
        torch.set_num_threads(1)
    setting = Setting(device, options.dry_run, time.monotonic() + 60 * options.minutes)
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    result: dict[str, Any] = {"parts": {}} | known
    result |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": options.commit}
    setting.facts.update(result["parts"].get("machine", {}))
    failed = False
    for name in chosen:
        began = time.monotonic()
        found: dict[str, Any]
        if setting.left < 0:
            found = {"failed": "no time was left"}
        else:
            try:
                found = parts[name](setting)
            except Exception:
                found = {"failed": traceback.format_exc().splitlines()[-12:]}
        failed |= "failed" in found
        found["seconds"] = time.monotonic() - began
        result["parts"][name] = found
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(found)[:3000], flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
