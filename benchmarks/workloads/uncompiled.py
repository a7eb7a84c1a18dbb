"""Where there is no C++ compiler and no library built ahead: the engine in plain torch, against vLLM."""

from __future__ import annotations

from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, Bench
from benchmarks.results import Findings
from benchmarks.workloads.adapters import Soft

CLIENTS = (1, 32)
ROUNDS = {1: 2, 32: 1}
VIRTUAL_TOKENS = 32


def run(bench: Bench) -> Findings:
    """Measure a little of *plain* and of *adapters* with `--attention cpu`."""
    vllm = bench.vllm()
    soft = Soft(bench, VIRTUAL_TOKENS)
    found = Findings()
    with bench.own(bench.store, "--attention", "cpu", label="waybill without a compiler") as ours:
        for clients in CLIENTS:
            count = clients * ROUNDS[clients]

            def asks(turn: int, count: int = count) -> list[Ask]:
                return [Ask(prompt) for prompt in bench.prompts(count, PROMPT, "uncompiled", count, turn)]

            sides = [bench.side(server, asks, clients) for server in (ours, vllm)]
            found.comparisons.append(bench.compare(f"{clients} client{'s' if clients > 1 else ''}", *sides, repeats=1))
        sides = [soft.side(server) for server in (ours, vllm)]
        found.comparisons.append(bench.compare(soft.name, *sides, repeats=1))
    return found
