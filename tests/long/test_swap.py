"""32 clients stream without pause while an alias flips 500 times and other adapters come and go."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.running import running
from tests.e2e.swapping import swap_under_load
from tests.e2e.tiny import make_tiny
from tests.long.recording import record

SMALL = ("--kv-memory", "4MiB", "--prefix-memory", "2MiB", "--max-seqs", "32", "--threads", "1")


async def test_five_hundred_flips(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    with running(tmp_path / "store", tmp_path, *SMALL, model=model) as server:
        outcome = await swap_under_load(server.url, tmp_path / "adapters", clients=32, flips=500)
    assert outcome.failures == []
    assert outcome.wrong == []
    answers = sorted(outcome.answers.values())
    assert len(answers) == 2
    counts = {"flips": outcome.flips, "failed": 0, "wrong": 0, "answers of each version": answers}
    others = {"others published": outcome.published, "deleted": outcome.deleted, "evicted": outcome.evicted}
    record("swap", counts | others)
