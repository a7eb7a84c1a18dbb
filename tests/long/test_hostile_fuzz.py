"""Ten thousand mutated uploads: none crashes the server, none publishes what is not right."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.hostile.fuzz import fuzz
from tests.hostile.serving import watched
from tests.http import folders
from tests.long.recording import record

COUNT = 10_000


def test_ten_thousand_mutations(tmp_path: Path) -> None:
    model = folders.make_model(tmp_path / "bytes")
    with watched(model, tmp_path) as server, httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        statuses = fuzz(server, client, model, COUNT, seed=2)
    record("hostile_fuzz", {"uploads": COUNT, "by status": {str(code): n for code, n in sorted(statuses.items())}})
