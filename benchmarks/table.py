"""A result as Markdown: the few rows that the README shows, and all of it for the page on benchmarks."""

from __future__ import annotations

from benchmarks.markdown import table
from benchmarks.results import Comparison, Figure, Point, Result, median_of

SHORT = ("plain", "adapters", "mix", "zipf", "long", "transformers", "peft")
"""Workloads whose comparisons the README shows; of each, those with a target."""

RATIOS = ("workload", "ours, tok/s", "theirs, tok/s", "ratio (range)", "aim", "", "TTFT p50, ms", "ITL p50, ms")
FIGURES = ("workload", "what", "value", "at most", "")
LOADS = ("open loop", "offered /s", "finished /s", "TTFT p50 / p95 / p99, ms", "ITL p50 / p95 / p99, ms")


def short(result: Result) -> str:
    """Return the README's table and the line that says where it was measured."""
    rows = [
        (_what(name, item), _rate(item, "our_turns"), f"{item.theirs} {_rate(item, 'their_turns')}", _ratio(item))
        for name, item in _comparisons(result, SHORT)
        if item.target is not None
    ]
    return f"{table(('workload', 'Waybill', 'against', 'ratio'), rows)}\n\n{_where(result)}"


def full(result: Result) -> str:
    """Return every comparison, figure and offered load, with what was aimed at and whether it was met."""
    ratios = [
        (
            _what(name, item),
            f"{item.ours} {_rate(item, 'our_turns')}",
            f"{item.theirs} {_rate(item, 'their_turns')}",
            f"{_ratio(item)} ({item.ratio.low:.2f} to {item.ratio.high:.2f})",
            "" if item.target is None else f"{item.target:.2f}",
            _verdict(item.met),
            _times(item, "ttft_p50"),
            _times(item, "itl_p50"),
        )
        for name, item in _comparisons(result)
    ]
    figures = [
        (name, f"{item.name} {item.note}".strip(), _value(item.value, item.unit), _limit(item), _verdict(item.met))
        for name, found in result.workloads.items()
        for item in found.figures
    ]
    loads = [_load(point) for found in result.workloads.values() for point in found.points]
    parts = [_where(result), table(RATIOS, ratios)]
    if figures:
        parts.append(table(FIGURES, figures))
    if loads:
        parts.append(table(LOADS, loads))
    parts += [f"*{name}*: {note}" for name, found in result.workloads.items() for note in found.notes]
    return "\n\n".join(parts)


def _comparisons(result: Result, names: tuple[str, ...] | None = None) -> list[tuple[str, Comparison]]:
    chosen = result.workloads if names is None else [name for name in names if name in result.workloads]
    return [(name, item) for name in chosen for item in result.workloads[name].comparisons]


def _where(result: Result) -> str:
    machine, versions = result.machine, result.versions
    memory = machine["memory"] / 2**30
    flags = ", ".join(flag.upper().replace("_", "-") for flag in machine["flags"])
    return (
        f"Output tokens per second, {result.options['model']} in bfloat16; medians over turns in pairs. "
        f"{machine['cores']} cores of {machine['cpu']} ({flags}), {memory:.0f} GiB; torch {versions['torch']}, "
        f"vLLM {versions['vllm']}; commit {result.commit}, {result.date[:10]}."
        + "".join(
            f" *{name}* was measured again: {found.again}." for name, found in result.workloads.items() if found.again
        )
    )


def _what(workload: str, item: Comparison) -> str:
    return f"*{workload}*: {item.name}"


def _rate(item: Comparison, side: str) -> str:
    return f"{median_of(getattr(item, side), 'rate').median:,.0f}"


def _ratio(item: Comparison) -> str:
    return f"{item.ratio.median:.2f}"


def _times(item: Comparison, name: str) -> str:
    """Ours and theirs; a library streams nothing and has none."""
    ours, theirs = (median_of(turns, name).median for turns in (item.our_turns, item.their_turns))
    return f"{ours:,.0f} : {theirs:,.0f}" if theirs else f"{ours:,.0f}"


def _load(point: Point) -> tuple[str, ...]:
    turn = point.turn
    return (
        point.side,
        f"{point.offered:.1f}",
        f"{point.finished:.1f}",
        f"{turn.ttft_p50:.0f} / {turn.ttft_p95:.0f} / {turn.ttft_p99:.0f}",
        f"{turn.itl_p50:.0f} / {turn.itl_p95:.0f} / {turn.itl_p99:.0f}",
    )


def _limit(item: Figure) -> str:
    return "" if item.limit is None else _value(item.limit, item.unit)


def _value(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}".strip() if value >= 100 else f"{value:,.3g} {unit}".strip()


def _verdict(met: bool | None) -> str:
    return "" if met is None else "met" if met else "not met"
