"""10,000 adapters, far more than fit: cold ones load all the time. Against one hot adapter, ours both."""

from __future__ import annotations

import random
from itertools import accumulate

from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, Bench, soft_prompt
from benchmarks.processes import resident_bytes
from benchmarks.results import Figure, Findings
from benchmarks.servers import Server, metric

AIM = 0.9
CLIENTS = 32
ROUNDS = 4
ADAPTERS, QUICK_ADAPTERS = 10_000, 1_000
PREFIX_MEMORY, QUICK_PREFIX_MEMORY = 512, 64
"""Megabytes."""

FILLING = 600
"""How many of the most popular are asked for once, before the first turn, so that memory is nearly full."""


def run(bench: Bench) -> Findings:
    """Measure what loading costs."""
    quick = bench.options.quick
    adapters, megabytes = (QUICK_ADAPTERS, QUICK_PREFIX_MEMORY) if quick else (ADAPTERS, PREFIX_MEMORY)
    store = bench.many_adapters(adapters)
    count = CLIENTS * (1 if quick else ROUNDS)
    weights = list(accumulate(1 / rank for rank in range(1, adapters + 1)))

    def traffic(turn: int) -> list[Ask]:
        names = random.Random(turn).choices(range(adapters), cum_weights=weights, k=count)
        prompts = bench.prompts(count, PROMPT, "zipf", turn)
        return [Ask(prompt, adapter=soft_prompt(i)) for i, prompt in zip(names, prompts, strict=True)]

    def hot(turn: int) -> list[Ask]:
        return [Ask(prompt, adapter=soft_prompt(0)) for prompt in bench.prompts(count, PROMPT, "hot", turn)]

    with bench.own(store, "--prefix-memory", f"{megabytes}MB", label="waybill zipf") as server:
        _fill(bench, server, adapters)
        loads = _metric(server, "waybill_cold_loads_total")
        spread = bench.side(server, traffic, CLIENTS, label=f"{adapters:,} adapters")
        single = bench.side(server, hot, CLIENTS, label="one adapter")
        comparison = bench.compare(f"{CLIENTS} clients, Zipf 1.0", spread, single, target=AIM, repeats=3)
        loads = _metric(server, "waybill_cold_loads_total") - loads
        blocks, total = _metric(server, "waybill_prefix_blocks_used"), _metric(server, "waybill_kv_blocks_total")
        resident = resident_bytes(server.pid)
    seconds = sum(turn.seconds for turn in comparison.our_turns)
    return Findings(
        [comparison],
        [
            Figure("loads", loads / seconds, "per second"),
            Figure("KV blocks that hold prefixes", blocks, f"of {total:,.0f}"),
            Figure("resident memory", resident / 2**20, "MiB"),
        ],
    )


def _fill(bench: Bench, server: Server, adapters: int) -> None:
    names = [soft_prompt(i) for i in range(min(FILLING, adapters))]
    bench.said("filling the prefix memory")
    asks = [Ask(prompt, 1, name) for prompt, name in zip(bench.prompts(len(names), 4, "fill"), names, strict=True)]
    bench.measure(server, asks, CLIENTS, [])


def _metric(server: Server, name: str) -> float:
    with server.awake():
        return metric(server, name)
