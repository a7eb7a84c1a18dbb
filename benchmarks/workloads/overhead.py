"""What the server itself costs for each token: HTTP, server-sent events, tokenizing, messages. There is no model."""

from __future__ import annotations

import json
from statistics import median

from benchmarks.asks import Ask, waybill_body
from benchmarks.bench import PROMPT, WARM_TOKENS, Bench
from benchmarks.processes import cpu_seconds
from benchmarks.results import Figure, Findings
from benchmarks.servers import start_null

LIMIT = 200.0
"""Microseconds of processor time for each streamed token."""

CLIENTS = 64
ROUNDS = 4
_WORDS = ("the", "of", "water", "river", "under", "light", "seven", "often", "table", "because", "north", "little")


def run(bench: Bench) -> Findings:
    """Read the processor time of the API process and of the null engine, which does nothing but read and write."""
    bench.said("starting waybill with the null engine")
    server = start_null(bench.model, bench.store, bench.folder, text_body)
    try:
        count = CLIENTS * (1 if bench.options.quick else ROUNDS)
        api: list[float] = []
        engine: list[float] = []
        with server.awake():
            for turn in range(bench.options.of(5)):
                asks = [Ask(prompt) for prompt in bench.prompts(count, PROMPT, "overhead", turn)]
                warm = [Ask(ask.prompt, WARM_TOKENS) for ask in asks[:CLIENTS]]
                server.send(warm, bench.folder, clients=CLIENTS)
                before = _cost(server.pid)
                outcome = server.send(asks, bench.folder, clients=CLIENTS)
                after = _cost(server.pid)
                assert not outcome.failures, outcome.failures[:3]
                api.append((after[0] - before[0]) / outcome.tokens * 1e6)
                engine.append((after[1] - before[1]) / outcome.tokens * 1e6)
    finally:
        server.stop()
    both = [mine + other for mine, other in zip(api, engine, strict=True)]
    name = f"processor time per streamed token at {CLIENTS} clients"
    return Findings(
        figures=[
            Figure(name, median(both), "µs", LIMIT, f"({min(both):.0f} to {max(both):.0f})"),
            Figure("of that, the API process", median(api), "µs"),
            Figure("of that, messages on the engine's side", median(engine), "µs"),
        ]
    )


def text_body(ask: Ask) -> bytes:
    """Put the request with a prompt of as many words, so that it has to be tokenized."""
    fields = json.loads(waybill_body(ask))
    fields["prompt"] = " ".join(_WORDS[number % len(_WORDS)] for number in ask.prompt)
    return json.dumps(fields).encode()


def _cost(pid: int) -> tuple[float, float]:
    """Return the seconds that the API process has burned, and those of the engine process below it."""
    api = cpu_seconds(pid, with_children=False)
    return api, cpu_seconds(pid) - api
