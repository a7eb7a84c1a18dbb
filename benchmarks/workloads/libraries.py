"""What one does without a server: PEFT's `generate`, and transformers' continuous batching."""

from __future__ import annotations

from functools import partial

from benchmarks.adapters import Recipe
from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, WARM_TOKENS, Bench, Side
from benchmarks.library.process import start_library
from benchmarks.results import Findings

CLIENTS = 32
ADAPTERS = 16
VIRTUAL_TOKENS = 32
PEFT_AIM = 15.0
TRANSFORMERS_AIM = 2.0


def run_peft(bench: Bench) -> Findings:
    """32 requests over 16 soft prompts, to PEFT one at a time; and 16 over 8 with those of one adapter in a batch."""
    recipes = [Recipe(f"peft-{i}", VIRTUAL_TOKENS, i) for i in range(ADAPTERS)]
    bench.workshop.publish(bench.store, recipes)
    folders = bench.folder / "peft"
    for recipe in recipes:
        bench.workshop.write(folders / recipe.name, recipe)

    def asks(kind: str, count: int, turn: int) -> list[Ask]:
        """No prompt comes twice, not even in the other comparison: a server may reuse what it has computed."""
        prompts = bench.prompts(count, PROMPT, kind, turn)
        adapters = ADAPTERS if kind == "peft" else count // 2
        return [Ask(prompt, adapter=recipes[i % adapters].name) for i, prompt in enumerate(prompts)]

    found = Findings()
    for kind, count, name, aim in (
        ("peft", CLIENTS, "one at a time", PEFT_AIM),
        ("peft-grouped", CLIENTS // 2, "an adapter's in a batch", None),
    ):
        count = 4 if bench.options.quick else count
        turns = partial(asks, kind, count)
        warm = [Ask(ask.prompt, WARM_TOKENS, ask.adapter) for ask in turns(-1)]
        peer = start_library(kind, bench.model, bench.folder, folders)
        try:
            bench.said(f"warming {kind}")
            peer.measure(warm[:2])
            ours = bench.side(bench.ours(), turns, CLIENTS, warm=warm)
            theirs = Side(kind, lambda turn, peer=peer, turns=turns: peer.measure(turns(turn)))  # type: ignore[misc]
            found.comparisons.append(bench.compare(f"{count} requests, {name}", ours, theirs, repeats=1, target=aim))
        finally:
            peer.stop()
    return found


def run_transformers(bench: Bench) -> Findings:
    """32 plain requests, to `generate_batch` all at once."""

    def asks(turn: int) -> list[Ask]:
        return [Ask(prompt) for prompt in bench.prompts(CLIENTS, PROMPT, "transformers", turn)]

    peer = start_library("transformers", bench.model, bench.folder)
    try:
        bench.said("warming transformers")
        peer.measure([Ask(ask.prompt, WARM_TOKENS) for ask in asks(-1)])
        theirs = Side("generate_batch", lambda turn: peer.measure(asks(turn)))
        ours = bench.side(bench.ours(), asks, CLIENTS)
        return Findings([bench.compare("32 requests", ours, theirs, repeats=2, target=TRANSFORMERS_AIM)])
    finally:
        peer.stop()
