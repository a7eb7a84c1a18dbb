"""What long proofs measured: one file each below `results/`, with the date and the machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.surroundings import machine

RESULTS = Path(__file__).parent / "results"


def record(name: str, result: dict[str, Any]) -> None:
    """Write a result; parts that were recorded before and are not in it stay."""
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    made = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine()}
    path.write_text(json.dumps(known | made | result, indent=2, sort_keys=True) + "\n")
