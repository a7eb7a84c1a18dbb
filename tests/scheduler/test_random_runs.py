"""Thousands of random lives of a scheduler, each checked slot by slot and step by step."""

from __future__ import annotations

import pytest

from tests.scheduler.random_runs import RandomRun, Tally

SEEDS = 1500


@pytest.mark.parametrize("part", range(2))
def test_random_runs_keep_every_promise(part: int) -> None:
    total = Tally()
    for seed in range(part, SEEDS, 2):
        try:
            total += RandomRun(seed).run()
        except Exception as error:
            raise AssertionError(f"random run {seed} failed") from error
    # The runs must have met what they are for.
    assert total.finished > 10 * total.runs
    assert min(total.preemptions, total.evictions, total.aborted, total.failed) > 100
    assert total.abandoned_compiles > 1
    assert total.reused_tokens > total.runs
    assert total.reused_after_a_preemption > 100
    assert total.copies > total.runs
    assert total.copies_of_what_is_handed_out > 3
    assert total.steps_with_many_compiles > 5
    assert total.steps_with_a_plan_in_flight > total.steps // 4
    assert total.longest_wait_to_bound <= 1


def test_a_flood_of_younger_sequences_starves_nobody() -> None:
    total = Tally()
    for seed in range(60):
        total += RandomRun(100_000 + seed, patience=10).run()
    assert total.steps > 200 * total.runs
    assert total.longest_wait_to_bound <= 1
