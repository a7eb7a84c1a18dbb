"""`python -m benchmarks`: run workloads, write the result, show it."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import peers, surroundings
from benchmarks.adapters import Workshop
from benchmarks.bench import Bench, Options
from benchmarks.peers import PeerError
from benchmarks.report import show
from benchmarks.results import Findings, Result, read_earlier, write_result
from benchmarks.servers import ROOT, ServerError
from benchmarks.workloads import (
    adapters,
    cold,
    grammar,
    labels,
    libraries,
    long,
    mix,
    open_loop,
    overhead,
    plain,
    quiet,
    uncompiled,
    zipf,
)

WORKLOADS = {
    "plain": plain.run,
    "adapters": adapters.run,
    "mix": mix.run,
    "grammar": grammar.run,
    "long": long.run,
    "open": open_loop.run,
    "transformers": libraries.run_transformers,
    "peft": libraries.run_peft,
    "zipf": zipf.run,
    "cold": cold.run,
    "labels": labels.run,
    "overhead": overhead.run,
    "uncompiled": uncompiled.run,
    "memory": quiet.run_memory,
    "idle": quiet.run_idle,
}

WIDTH = 150
"""Columns of the tables where the output is no terminal."""

console = Console()


def main(
    workload: Annotated[
        list[str] | None, typer.Option(help="Which to run; give it once for each. Default: all.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of turns for each comparison.")] = 5,
    quick: Annotated[bool, typer.Option(help="One short turn of everything, to see that it works.")] = False,
    attention: Annotated[
        str, typer.Option(help="Our server's --attention; cpu is the engine without a compiler.")
    ] = "auto",
    save: Annotated[
        bool, typer.Option(help="Write into benchmarks/results/ instead of the ignored benchmarks/out/.")
    ] = False,
    again: Annotated[
        Path | None,
        typer.Option(help="A result of this machine in which the workloads are measured again.", exists=True),
    ] = None,
    model: Annotated[Path, typer.Option(help="Folder of the base model.", exists=True, file_okay=False)] = ROOT
    / "models"
    / "smollm2-135m",
) -> None:
    """Measure this server against its peers on this machine."""
    chosen = workload or list(WORKLOADS)
    if unknown := sorted(set(chosen) - set(WORKLOADS)):
        raise typer.BadParameter(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    if again is not None and save:
        raise typer.BadParameter("--again writes into its file; --save has nothing to add")
    options = Options(repeats, quick, attention)
    result = Result(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=surroundings.commit(ROOT),
        machine=surroundings.machine(),
        versions=surroundings.versions(peers.installed()),
        options=asdict(options) | {"model": model.name},
    )
    folder = ROOT / "benchmarks" / ("results" if save else "out")
    path = folder / f"{result.date[:19].replace(':', '')}-{result.commit}.json"
    stamp, failed = "", list[str]()
    if again is not None:
        stamp = f"{result.date[:16]}, commit {result.commit}"
        try:
            path, result = again.resolve(), read_earlier(again, result)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with tempfile.TemporaryDirectory(prefix="waybill-bench-") as scratch, ExitStack() as stack:
        bar = stack.enter_context(Progress(*columns, console=console))
        task = bar.add_task("", total=len(chosen))
        bench = Bench(
            model=model,
            folder=Path(scratch),
            peers=ROOT / ".peers",
            options=options,
            said=lambda text: bar.update(task, description=text),
            stack=stack,
            workshop=Workshop(model),
        )
        for name in chosen:
            found = _run(name, bench)
            found.again = stamp
            if found.notes and again is not None:
                failed.append(f"{name}: {', '.join(found.notes)}")  # what was measured before stays
            else:
                result.workloads[name] = found
                write_result(result, path)
            bar.advance(task)
    show(result, console if console.is_terminal else Console(width=WIDTH))
    console.print(f"written to {path}", markup=False)
    for failure in failed:
        console.print(f"left as it was, {failure}", markup=False)
    if failed or any(found.notes for found in result.workloads.values()):
        raise typer.Exit(1)


def _run(name: str, bench: Bench) -> Findings:
    began = time.monotonic()
    try:
        found = WORKLOADS[name](bench)
    except (PeerError, ServerError) as error:
        found = Findings(notes=[f"not measured: {error}"])
    found.seconds = time.monotonic() - began
    return found


if __name__ == "__main__":
    typer.run(main)
