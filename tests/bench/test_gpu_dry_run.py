"""`benchmarks.gpu --dry-run` runs every part on a CPU and reports what a run on a card does."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.servers import ROOT

RESULTS = ROOT / "benchmarks" / "gpu" / "results"
PARTS = ("machine", "kernels", "parity", "steps", "throughput", "peers")
NAMED = {
    "kernels.differences": "case",
    "steps": "model",
    "steps.model.kernels": "step",
    "throughput.adapters": "adapters",
}
"""Below these, names say what was measured, and differ with the shapes."""


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command wrote after all parts, and the one that runs only when asked for, beside what was there."""
    out = tmp_path_factory.mktemp("dry") / "gpu.json"
    out.write_text(json.dumps({"parts": {"earlier": {"kept": 1}}}))
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(out)]
    command += [word for part in (*PARTS, "tune") for word in ("--part", part)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    written: dict[str, Any] = json.loads(out.read_text())
    return written


def places(value: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Every value with its place; in the place, what is only a name of something measured stands as what it names."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, f"{at}.{NAMED.get(at, name)}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from places(inner, f"{at}[]")
    else:
        yield at, value


def measured(part: str) -> dict[str, Any]:
    """The part of the newest committed result that has it."""
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: json.loads(path.read_text())["date"], reverse=True):
        parts = json.loads(path.read_text())["parts"]
        if part in parts:
            found: dict[str, Any] = parts[part]
            return found
    raise AssertionError(f"no committed result has {part}")


def test_every_part_runs(dry: dict[str, Any]) -> None:
    assert set(dry["parts"]) == {*PARTS, "tune", "earlier"}
    for place, value in places(dry["parts"]):
        assert "failed" not in place, f"{place}: {value}"
        if isinstance(value, float):
            assert math.isfinite(value), place


@pytest.mark.parametrize("part", [part for part in PARTS if part != "peers"])
def test_a_part_reports_what_it_did_on_a_card(dry: dict[str, Any], part: str) -> None:
    there = {place for place, _ in places({part: measured(part)})}
    if part == "parity":
        there = {place for place in there if place.startswith("parity.llama.") or place == "parity.seconds"}
    if part == "kernels":
        there.discard("kernels.differences.not reached from")
    assert {place for place, _ in places({part: dry["parts"][part]})} == there


def test_the_peers_run_too(dry: dict[str, Any]) -> None:
    assert set(dry["parts"]["peers"]) == {"generate", "generate_batch", "seconds"}
    assert dry["parts"]["peers"]["generate_batch"]["tokens"] == 8


def test_a_run_keeps_the_parts_that_it_was_not_asked_for(dry: dict[str, Any]) -> None:
    assert dry["parts"]["earlier"] == {"kept": 1}
