"""Two hundred mutated uploads; ten thousand are sent by tests/long/test_hostile_fuzz.py."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.hostile.fuzz import fuzz
from tests.hostile.serving import watched
from tests.http import folders


def test_mutated_uploads_are_taken_whole_or_refused(tmp_path: Path) -> None:
    model = folders.make_model(tmp_path / "bytes")
    with watched(model, tmp_path) as server, httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        statuses = fuzz(server, client, model, count=200, seed=1)
    assert statuses[422] > 80
    assert statuses[201] > 3
