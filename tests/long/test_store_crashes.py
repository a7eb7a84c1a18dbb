"""A store's writers can be killed at any moment: 200 at random, then one at each step of each scenario."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.long.recording import record
from tests.store.crashes import SCENARIOS, kill_at_random_moments

ROUNDS = 200


def test_writers_killed_at_random_moments_leave_whole_versions_or_none(tmp_path: Path) -> None:
    record("store_crashes", {"killed at random moments": kill_at_random_moments(tmp_path, ROUNDS, seed=1)})


def test_writers_that_die_at_each_of_their_steps_leave_whole_versions_or_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.store.crashes", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    died = {scenario: shown.stdout.count(f"{scenario}: died") for scenario in SCENARIOS}
    assert all(died.values())
    record("store_crashes", {f"killed at each step of {scenario}": count for scenario, count in died.items()})
