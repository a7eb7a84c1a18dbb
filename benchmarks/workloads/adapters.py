"""Soft prompts of several lengths. vLLM has no adapters: its clients send soft prompt and text as embeddings."""

from __future__ import annotations

from benchmarks.adapters import Recipe
from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, WARM_TOKENS, Bench
from benchmarks.results import Findings

AIMS = {32: 1.35, 128: 1.5, 1024: 3.0}
"""The ratio that is aimed at, by the number of virtual tokens."""

REPEATS = {32: 5, 128: 5, 1024: 3}
CLIENTS = 32
ADAPTERS = 16
ROUNDS = 2


def run(bench: Bench) -> Findings:
    """Measure ours against vLLM; what the clients send is prepared before the clock starts."""
    ours, vllm = bench.ours(), bench.vllm()
    found = Findings()
    for virtual_tokens, aim in AIMS.items():
        recipes = [Recipe(f"soft-{virtual_tokens}-{i}", virtual_tokens, i) for i in range(ADAPTERS)]
        bench.said(f"making {ADAPTERS} soft prompts of {virtual_tokens} virtual tokens")
        bench.workshop.publish(bench.store, recipes)
        count = CLIENTS * (1 if bench.options.quick or virtual_tokens > 1000 else ROUNDS)

        def asks(turn: int, count: int = count, recipes: list[Recipe] = recipes) -> list[Ask]:
            return _asks(bench, recipes, count, turn)

        warm = [
            Ask(ask.prompt, WARM_TOKENS, ask.adapter, ask.embeddings) for ask in _asks(bench, recipes, ADAPTERS, -1)
        ]
        sides = [bench.side(server, asks, CLIENTS, warm=warm) for server in (ours, vllm)]
        name = f"{virtual_tokens} virtual tokens"
        found.comparisons.append(bench.compare(name, *sides, repeats=REPEATS[virtual_tokens], target=aim))
    return found


def _asks(bench: Bench, recipes: list[Recipe], count: int, turn: int) -> list[Ask]:
    """Return requests for each adapter in its turn, in both servers' terms."""
    prompts = bench.prompts(count, PROMPT, recipes[0].name, turn)
    asked = [(recipes[i % len(recipes)], prompt) for i, prompt in enumerate(prompts)]
    return [
        Ask(prompt, adapter=recipe.name, embeddings=bench.workshop.embeddings(recipe, prompt))
        for recipe, prompt in asked
    ]
