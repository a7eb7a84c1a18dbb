"""Tens of thousands of random lives of a scheduler; each sequence ends within the bound. Takes some minutes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.scheduler.random_runs import RandomRun, Tally

RESULTS = Path(__file__).parent / "results" / "scheduler.json"


@pytest.mark.parametrize(
    ("name", "first", "runs", "patience"),
    [("random runs", 1_000_000, 30_000, 1), ("under a flood of younger sequences", 2_000_000, 1_000, 20)],
)
def test_every_sequence_ends_within_the_bound(name: str, first: int, runs: int, patience: int) -> None:
    total = Tally()
    for seed in range(first, first + runs):
        try:
            total += RandomRun(seed, patience=patience).run()
        except Exception as error:
            raise AssertionError(f"random run {seed} failed") from error
    result = asdict(total) | {"longest_wait_to_bound": round(total.longest_wait_to_bound, 3)}
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {name: result}, indent=2, sort_keys=True) + "\n")
    assert total.longest_wait_to_bound <= 1
