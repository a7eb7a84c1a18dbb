"""64 adapters of all kinds in one batch, against the same requests without any. Ours against ours."""

from __future__ import annotations

from benchmarks.adapters import Recipe
from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, WARM_TOKENS, Bench
from benchmarks.results import Findings
from server.core import AdapterKind

AIM = 0.95
CLIENTS = 64
SHORTEST, LONGEST = 16, 32
"""Virtual tokens of the adapters."""


def run(bench: Bench) -> Findings:
    """Measure the price of adapters."""
    ours = bench.ours()
    kinds = list(AdapterKind)
    lengths = range(SHORTEST, LONGEST + 1)
    recipes = [Recipe(f"mix-{i}", lengths[i % len(lengths)], i, kinds[i % len(kinds)]) for i in range(CLIENTS)]
    bench.workshop.publish(bench.store, recipes)

    def mixed(turn: int) -> list[Ask]:
        prompts = bench.prompts(CLIENTS, PROMPT, "mix", turn)
        return [Ask(prompt, adapter=recipes[i % len(recipes)].name) for i, prompt in enumerate(prompts)]

    def bare(turn: int) -> list[Ask]:
        return [Ask(prompt) for prompt in bench.prompts(CLIENTS, PROMPT, "mix bare", turn)]

    prompts = bench.prompts(CLIENTS, PROMPT, "mix warm")
    warm = [Ask(prompt, WARM_TOKENS, recipe.name) for prompt, recipe in zip(prompts, recipes, strict=True)]
    with_adapters = bench.side(ours, mixed, CLIENTS, warm=warm, label="64 adapters")
    without = bench.side(ours, bare, CLIENTS, label="no adapter")
    return Findings([bench.compare("64 clients, 64 adapters", with_adapters, without, repeats=4, target=AIM)])
