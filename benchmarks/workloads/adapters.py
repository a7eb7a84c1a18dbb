"""Soft prompts of several lengths. vLLM has no adapters: its clients send soft prompt and text as embeddings."""

from __future__ import annotations

from benchmarks.adapters import Recipe
from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, WARM_TOKENS, Bench, Side
from benchmarks.results import Findings
from benchmarks.servers import Server

AIMS = {32: 1.35, 128: 1.5, 1024: 3.0}
"""The ratio that is aimed at, by the number of virtual tokens."""

REPEATS = 3
CLIENTS = 32
ADAPTERS = 16


def run(bench: Bench) -> Findings:
    """Measure ours against vLLM; what the clients send is prepared before the clock starts."""
    ours, vllm = bench.ours(), bench.vllm()
    found = Findings()
    for virtual_tokens, aim in AIMS.items():
        soft = Soft(bench, virtual_tokens)
        sides = [soft.side(server) for server in (ours, vllm)]
        found.comparisons.append(bench.compare(soft.name, *sides, repeats=REPEATS, target=aim))
    return found


class Soft:
    """16 soft prompts of one length, published, and 32 clients that ask for each in its turn."""

    def __init__(self, bench: Bench, virtual_tokens: int) -> None:
        bench.said(f"making {ADAPTERS} soft prompts of {virtual_tokens} virtual tokens")
        self.name = f"{virtual_tokens:,} virtual tokens"
        self._bench = bench
        self._recipes = [Recipe(f"soft-{virtual_tokens}-{i}", virtual_tokens, i) for i in range(ADAPTERS)]
        bench.workshop.publish(bench.store, self._recipes)

    def side(self, server: Server) -> Side:
        """Return one side of a comparison, in which each client asks once."""
        warm = [Ask(ask.prompt, WARM_TOKENS, ask.adapter, ask.embeddings) for ask in self._asks(ADAPTERS, -1)]
        return self._bench.side(server, lambda turn: self._asks(CLIENTS, turn), CLIENTS, warm=warm)

    def _asks(self, count: int, turn: int) -> list[Ask]:
        """Return requests in both servers' terms."""
        prompts = self._bench.prompts(count, PROMPT, self._recipes[0].name, turn)
        asked = [(self._recipes[i % ADAPTERS], prompt) for i, prompt in enumerate(prompts)]
        return [
            Ask(prompt, adapter=recipe.name, embeddings=self._bench.workshop.embeddings(recipe, prompt))
            for recipe, prompt in asked
        ]
