"""No adapter: how fast the bare model is served, by clients that never pause."""

from __future__ import annotations

from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, Bench
from benchmarks.results import Findings

AIMS = {1: 1.4, 8: 1.5, 32: 1.3, 64: 1.3}
"""The ratio that is aimed at, by the number of clients."""

ROUNDS = {1: 3, 8: 3, 32: 2, 64: 2}
"""Requests that each client sends in a turn."""


def run(bench: Bench) -> Findings:
    """Measure ours against vLLM."""
    ours, vllm = bench.ours(), bench.vllm()
    found = Findings()
    for clients, aim in AIMS.items():
        count = clients * (1 if bench.options.quick else ROUNDS[clients])

        def asks(turn: int, count: int = count) -> list[Ask]:
            return [Ask(prompt) for prompt in bench.prompts(count, PROMPT, "plain", count, turn)]

        sides = [bench.side(server, asks, clients) for server in (ours, vllm)]
        found.comparisons.append(bench.compare(f"{clients} clients", *sides, target=aim))
    return found
