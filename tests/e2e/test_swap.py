"""No request fails, and none is answered by another version than it says, while adapters are swapped under load.

The whole form, 500 flips under 32 clients, is tests/long/test_swap.py.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.running import running
from tests.e2e.swapping import swap_under_load
from tests.e2e.tiny import make_tiny

SMALL = ("--kv-memory", "4MiB", "--prefix-memory", "2MiB", "--max-seqs", "16", "--threads", "1")


async def test_an_alias_flips_under_load(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    with running(tmp_path / "store", tmp_path, *SMALL, model=model) as server:
        outcome = await swap_under_load(server.url, tmp_path / "adapters", clients=8, flips=40)
    assert outcome.failures == []
    assert outcome.wrong == []
    assert outcome.flips == 40
    assert len(outcome.answers) == 2
    assert min(outcome.published, outcome.deleted, outcome.evicted) > 0
