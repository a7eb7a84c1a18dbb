"""Where the long tests of clients note what they tried, on what, and when."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.machine import read_machine

RESULTS = Path(__file__).parents[1] / "results" / "clients.json"


def record(client: str, told: dict[str, Any]) -> None:
    """Note that a client was tried, in which versions."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[client] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {read_machine().cores} cores",
        "python": platform.python_version(),
        "versions": told["versions"],
        "errors": {case: error["type"] for case, error in told["errors"].items()},
    }
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
