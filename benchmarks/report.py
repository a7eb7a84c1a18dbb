"""The result on a terminal: one table of ratios, one of figures."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.results import Comparison, Result, median_of


def show(result: Result, console: Console) -> None:
    """Print what a run found."""
    comparisons = [(name, item) for name, found in result.workloads.items() for item in found.comparisons]
    if comparisons:
        console.print(_ratios(comparisons))
    points = [point for found in result.workloads.values() for point in found.points]
    if points:
        table = _table(
            "open loop", "side", "offered", "finished", "ttft p50 / p95 / p99", "itl p50 / p95 / p99", "failed"
        )
        for point in points:
            turn = point.turn
            table.add_row(
                point.side,
                f"{point.offered:.1f}/s",
                f"{point.finished:.1f}/s",
                f"{turn.ttft_p50:.0f} / {turn.ttft_p95:.0f} / {turn.ttft_p99:.0f} ms",
                f"{turn.itl_p50:.0f} / {turn.itl_p95:.0f} / {turn.itl_p99:.0f} ms",
                str(turn.failures),
            )
        console.print(table)
    figures = [(name, item) for name, found in result.workloads.items() for item in found.figures]
    if figures:
        table = _table("figures", "workload", "what", "value", "at most", "")
        for name, figure in figures:
            limit = "" if figure.limit is None else f"{figure.limit:,.4g} {figure.unit}"
            value = f"{figure.value:,.4g} {figure.unit}"
            table.add_row(name, f"{figure.name} {figure.note}".strip(), value, limit, _verdict(figure.met))
        console.print(table)
    for name, found in result.workloads.items():
        for note in found.notes:
            console.print(f"{name}: {note}", markup=False)


def _ratios(comparisons: list[tuple[str, Comparison]]) -> Table:
    names = ("workload", "ours", "theirs", "ratio (range)", "aim", "", "ttft p50", "itl p50", "failed")
    table = _table("output tokens per second; medians", *names)
    for name, item in comparisons:
        ours, theirs = (median_of(turns, "rate").median for turns in (item.our_turns, item.their_turns))
        ttft = [median_of(turns, "ttft_p50").median for turns in (item.our_turns, item.their_turns)]
        itl = [median_of(turns, "itl_p50").median for turns in (item.our_turns, item.their_turns)]
        table.add_row(
            f"{name}: {item.name}",
            f"{item.ours} {ours:,.0f}",
            f"{item.theirs} {theirs:,.0f}",
            f"{item.ratio.median:.2f} ({item.ratio.low:.2f} to {item.ratio.high:.2f})",
            "" if item.target is None else f"{item.target:.2f}",
            _verdict(item.met),
            f"{ttft[0]:,.0f} : {ttft[1]:,.0f} ms",
            f"{itl[0]:,.1f} : {itl[1]:,.1f} ms",
            str(sum(turn.failures for turn in (*item.our_turns, *item.their_turns))),
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _verdict(met: bool | None) -> str:
    return "" if met is None else "met" if met else "not met"
