"""No adapter: how fast the bare model is served, by clients that never pause."""

from __future__ import annotations

from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, Bench
from benchmarks.results import Comparison, Figure, Findings, median_of

AIMS = {1: 1.4, 8: 1.5, 32: 1.3, 64: 1.3}
"""The ratio that is aimed at, by the number of clients."""

ROUNDS = 2
"""Requests that each client sends in a turn."""

REPEATS = 3

FIRST_TOKEN_CLIENTS = 32


def run(bench: Bench) -> Findings:
    """Measure ours against vLLM."""
    ours, vllm = bench.ours(), bench.vllm()
    found = Findings()
    for clients, aim in AIMS.items():
        count = clients * (1 if bench.options.quick else ROUNDS)

        def asks(turn: int, count: int = count) -> list[Ask]:
            return [Ask(prompt) for prompt in bench.prompts(count, PROMPT, "plain", count, turn)]

        sides = [bench.side(server, asks, clients) for server in (ours, vllm)]
        name = f"{clients} client{'s' if clients > 1 else ''}"
        found.comparisons.append(bench.compare(name, *sides, repeats=REPEATS, target=aim))
        if clients == FIRST_TOKEN_CLIENTS:
            found.figures.append(_first_token(found.comparisons[-1]))
    return found


def _first_token(item: Comparison) -> Figure:
    """Hold our time to the first token against the peer's."""
    ours, theirs = (median_of(turns, "ttft_p50").median for turns in (item.our_turns, item.their_turns))
    return Figure(f"TTFT p50 at {item.name}, at most the peer's", ours, "ms", theirs)
