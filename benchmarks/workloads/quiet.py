"""What the server holds after many requests, and what it burns when nobody asks."""

from __future__ import annotations

import time

from benchmarks.adapters import Recipe
from benchmarks.asks import Ask
from benchmarks.bench import Bench
from benchmarks.processes import cpu_seconds, resident_bytes
from benchmarks.results import Figure, Findings

ADAPTERS = 1_000
VIRTUAL_TOKENS = 8
"""Few, because no round of all adapters finds any of them still in KV memory: each request computes its own again."""

EARLY, LATE = 2_000, 10_000
"""Requests after which memory is read."""

AT_ONCE = 1_000
"""Requests of one turn, so that a slow machine ends it in time."""

GROWTH_LIMIT = 1.05
CLIENTS = 64
PROMPT, NEW_TOKENS = 8, 2

IDLE_SECONDS, QUICK_IDLE_SECONDS = 60.0, 3.0
IDLE_LIMIT = 1.0
"""Percent of a core."""


def run_memory(bench: Bench) -> Findings:
    """Read resident memory early and late in 10,000 short requests that go round all adapters."""
    share = 20 if bench.options.quick else 1
    store = bench.folder / "memory"
    recipes = [Recipe(f"small-{i}", VIRTUAL_TOKENS, i) for i in range(ADAPTERS)]
    bench.said(f"publishing {ADAPTERS:,} adapters")
    bench.workshop.publish(store, recipes)
    names = [recipe.name for recipe in recipes]
    read: list[int] = []
    with bench.own(store, "--kv-memory", "512MB", label="waybill memory") as server:
        for first, last in ((0, EARLY // share), (EARLY // share, LATE // share)):
            for start in range(first, last, AT_ONCE):
                count = min(AT_ONCE, last - start)
                bench.said(f"requests {start:,} to {start + count:,}")
                prompts = bench.prompts(count, PROMPT, "memory", start)
                asks = [Ask(prompt, NEW_TOKENS, names[(start + i) % ADAPTERS]) for i, prompt in enumerate(prompts)]
                turn = bench.measure(server, asks, CLIENTS, [])
                assert turn.failures == 0, turn
            read.append(resident_bytes(server.pid))
    early, late = read
    return Findings(
        figures=[
            Figure(f"resident memory after {EARLY // share:,} requests", early / 2**20, "MiB"),
            Figure(f"resident memory after {LATE // share:,} requests", late / 2**20, "MiB"),
            Figure("the later over the earlier", late / early, "", GROWTH_LIMIT),
        ]
    )


def run_idle(bench: Bench) -> Findings:
    """Read processor time over a minute in which nobody asks."""
    server = bench.ours()
    seconds = QUICK_IDLE_SECONDS if bench.options.quick else IDLE_SECONDS
    bench.said("idling")
    with server.awake():
        time.sleep(1)
        before, began = cpu_seconds(server.pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu_seconds(server.pid) - before) / (time.monotonic() - began)
    return Findings(figures=[Figure("processor time of an idle server", share * 100, "% of a core", IDLE_LIMIT)])
