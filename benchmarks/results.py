"""The result file: what was measured, on which machine, with which versions. JSON, and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.client.job import Outcome
from benchmarks.spreads import Spread, paired_ratios, percentile, spread

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement of one side. Times are milliseconds, the rate output tokens per second."""

    rate: float
    tokens: int
    seconds: float
    ttft_p50: float
    ttft_p95: float
    ttft_p99: float
    itl_p50: float
    itl_p95: float
    itl_p99: float
    failures: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours and another side, measured in turns; `target` is the ratio that is aimed at."""

    name: str
    ours: str
    theirs: str
    our_turns: tuple[Turn, ...]
    their_turns: tuple[Turn, ...]
    ratio: Spread
    target: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio.median >= self.target


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `limit` is what it may be at most."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.limit is None else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Point:
    """One offered load of the open loop, in requests per second, and what one side made of it."""

    side: str
    offered: float
    finished: float  # requests per second
    turn: Turn


@dataclass(slots=True)
class Findings:
    """What one workload found; `notes` say what could not be measured, and why.

    `again` says when and with which commit, where that was after the rest of its run.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    again: str = ""


@dataclass(slots=True)
class Result:
    """A whole run."""

    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    workloads: dict[str, Findings] = field(default_factory=dict)


def turn_of(outcome: Outcome) -> Turn:
    """Summarise what the client saw."""
    firsts, gaps = outcome.firsts, outcome.gaps
    return Turn(
        rate=outcome.rate,
        tokens=outcome.tokens,
        seconds=outcome.wall,
        ttft_p50=percentile(firsts, 0.5) * 1000,
        ttft_p95=percentile(firsts, 0.95) * 1000,
        ttft_p99=percentile(firsts, 0.99) * 1000,
        itl_p50=percentile(gaps, 0.5) * 1000,
        itl_p95=percentile(gaps, 0.95) * 1000,
        itl_p99=percentile(gaps, 0.99) * 1000,
        failures=len(outcome.failures),
    )


def compare(
    name: str, ours: str, theirs: str, pairs: list[tuple[Turn, Turn]], target: float | None = None
) -> Comparison:
    """Put turns that were measured in pairs side by side. Raises ValueError where a peer produced nothing."""
    mine, other = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    ratio = paired_ratios([turn.rate for turn in mine], [turn.rate for turn in other])
    return Comparison(name, ours, theirs, mine, other, ratio, target)


def median_of(turns: tuple[Turn, ...], name: str) -> Spread:
    """Return the spread of one field of `Turn` over turns."""
    return spread([float(getattr(turn, name)) for turn in turns])


def write_result(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = _rounded(asdict(result) | {"format": FORMAT})
    path.write_text(json.dumps(rounded, indent=1) + "\n")


def read_result(path: Path) -> Result:
    """Read a file that `write_result` wrote. Raises ValueError for any other."""
    try:
        data = json.loads(path.read_text())
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        data["workloads"] = {name: _findings(found) for name, found in data["workloads"].items()}
        return Result(**data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a result of this suite: {error}") from error


def read_earlier(path: Path, now: Result) -> Result:
    """Read a file that `write_result` wrote. Raises ValueError unless machine, versions and options are as `now`."""
    earlier = read_result(path)
    for name in ("machine", "versions", "options"):
        if getattr(earlier, name) != getattr(now, name):
            raise ValueError(f"{path} was measured with another {name.removesuffix('s')}: {getattr(earlier, name)}")
    return earlier


def _findings(data: dict[str, Any]) -> Findings:
    return Findings(
        comparisons=[_comparison(item) for item in data["comparisons"]],
        figures=[Figure(**item) for item in data["figures"]],
        points=[Point(**item | {"turn": Turn(**item["turn"])}) for item in data["points"]],
        notes=data["notes"],
        seconds=data["seconds"],
        again=data.get("again", ""),  # older files lack it
    )


def _comparison(data: dict[str, Any]) -> Comparison:
    turns = {side: tuple(Turn(**turn) for turn in data[side]) for side in ("our_turns", "their_turns")}
    ratio = Spread(**data["ratio"] | {"values": tuple(data["ratio"]["values"])})
    return Comparison(**data | turns | {"ratio": ratio})


def _rounded(value: Any) -> Any:
    """Four significant decimals: more is noise and makes every diff long."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
