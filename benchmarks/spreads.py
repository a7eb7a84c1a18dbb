"""Medians, percentiles and spreads: every figure of the suite is made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the values it was taken from, in the order in which they were measured."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the range of at least one value."""
    return Spread(median(values), min(values), max(values), tuple(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the others lie, between neighbours in proportion.

    Of no values it is 0.0.
    """
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return ours over theirs, turn by turn: a pair shares its minute of the machine, medians of each side do not.

    Raises ValueError for sides of different length, or a turn in which the peer did nothing.
    """
    if 0 in theirs:
        raise ValueError("the peer produced nothing in one turn")
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])
