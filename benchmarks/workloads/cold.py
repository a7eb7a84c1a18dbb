"""What an adapter costs when it is first used: its own first token, and the tokens of everybody else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks.adapters import Recipe
from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, Bench
from benchmarks.results import Figure, Findings, Turn, turn_of
from benchmarks.servers import Server

FIRST_TOKEN_LIMIT = 100.0
"""Milliseconds that a cold adapter's first token may take longer than a warm one's."""

TRIALS, QUICK_TRIALS = 20, 3
VIRTUAL_TOKENS = 32
CLIENTS = 16
LOADS = 20
"""Adapters a second."""

SECONDS, QUICK_SECONDS = 6, 2


def run(bench: Bench) -> Findings:
    """Measure both on a server that has seen none of the adapters."""
    quick = bench.options.quick
    trials, seconds = (QUICK_TRIALS, QUICK_SECONDS) if quick else (TRIALS, SECONDS)
    repeats = bench.options.of(3)
    recipes = [Recipe(f"cold-{i}", VIRTUAL_TOKENS, i) for i in range(trials + LOADS * seconds * repeats)]
    store = bench.folder / "cold"
    bench.said(f"making {len(recipes)} adapters")
    bench.workshop.publish(store, recipes)
    names = iter([recipe.name for recipe in recipes])
    with bench.own(store) as server:
        figures = _first_token(bench, server, [next(names) for _ in range(trials)])
        figures += _others(bench, server, names, seconds, repeats)
    return Findings(figures=figures)


def _first_token(bench: Bench, server: Server, names: list[str]) -> list[Figure]:
    """Ask each adapter twice, alone on the server: the first time it is cold."""
    prompts = iter(bench.prompts(2 * len(names) + 4, PROMPT, "cold"))
    bench.measure(server, [Ask(next(prompts)) for _ in range(4)], 1, [])
    more = []
    for name in names:
        cold = bench.measure(server, [Ask(next(prompts), 1, name)], 1, [])
        warm = bench.measure(server, [Ask(next(prompts), 1, name)], 1, [])
        more.append(cold.ttft_p50 - warm.ttft_p50)
    return [
        Figure("a cold adapter's first token, more than a warm one's, median", median(more), "ms", FIRST_TOKEN_LIMIT),
        Figure("the same, worst", max(more), "ms", FIRST_TOKEN_LIMIT, f"of {len(names)}"),
    ]


def _others(bench: Bench, server: Server, names: Iterator[str], seconds: int, repeats: int) -> list[Figure]:
    """Decode for 16 clients alone, beside 20 requests a second for a warm adapter, and beside as many for cold ones."""
    hot = next(names)
    quiet, warm, cold = [], [], []
    for turn in range(repeats):
        fresh = [next(names, hot) for _ in range(LOADS * seconds)]
        quiet.append(_beside(bench, server, [], seconds, turn))
        warm.append(_beside(bench, server, [hot] * len(fresh), seconds, turn + repeats))
        cold.append(_beside(bench, server, fresh, seconds, turn + 2 * repeats))
    step = median(turn.itl_p50 for turn in quiet)
    growth = median(after.itl_p99 - before.itl_p99 for before, after in zip(quiet, cold, strict=True))
    same = median(after.itl_p99 - before.itl_p99 for before, after in zip(quiet, warm, strict=True))
    note = f"(p99 {median(t.itl_p99 for t in quiet):.1f} ms without, {median(t.itl_p99 for t in cold):.1f} ms with)"
    return [
        Figure("others' p99 inter-token latency grows, while 20 adapters a second load, by", growth, "ms", step, note),
        Figure("others' p99 grows, beside 20 requests a second for one warm adapter, by", same, "ms"),
    ]


def _beside(bench: Bench, server: Server, names: list[str], seconds: int, turn: int) -> Turn:
    """Measure 16 clients while others ask for an adapter's one token, 20 times a second."""
    rounds = max(1, seconds)
    asks = [Ask(prompt, 32) for prompt in bench.prompts(CLIENTS * rounds, PROMPT, "beside", turn)]
    loads = [Ask(prompt, 1, name) for prompt, name in zip(bench.prompts(len(names), 4, "l", turn), names, strict=True)]
    side_folder = bench.folder / "loads"
    side_folder.mkdir(exist_ok=True)
    with server.awake(), ThreadPoolExecutor(1) as other:
        if loads:
            times = tuple(i / LOADS for i in range(len(loads)))
            running = other.submit(server.send, loads, side_folder, times=times)
        measured = turn_of(server.send(asks, bench.folder, clients=CLIENTS))
        if loads:
            running.result()
    return measured
