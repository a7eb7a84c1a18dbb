"""Long contexts: one cartridge of 4,096 virtual tokens under everybody, and prompts of 1,024 tokens."""

from __future__ import annotations

from benchmarks.adapters import Recipe
from benchmarks.asks import Ask
from benchmarks.bench import PROMPT, WARM_TOKENS, Bench
from benchmarks.results import Figure, Findings
from benchmarks.servers import metric
from server.core import AdapterKind

AIM = 0.5
CLIENTS = 32
CARTRIDGE = Recipe("cartridge", 4096, 1, AdapterKind.CARTRIDGE)

LONG_PROMPT = 1024
LONG_CLIENTS = 8


def run(bench: Bench) -> Findings:
    """Measure the cartridge against the bare model, ours both, and long prompts against vLLM."""
    found = _cartridge(bench)
    ours, vllm = bench.ours(), bench.vllm()

    def asks(turn: int) -> list[Ask]:
        return [Ask(prompt) for prompt in bench.prompts(LONG_CLIENTS, LONG_PROMPT, "long", turn)]

    sides = [bench.side(server, asks, LONG_CLIENTS) for server in (ours, vllm)]
    name = f"{LONG_CLIENTS} clients, prompts of {LONG_PROMPT:,} tokens"
    found.comparisons.append(bench.compare(name, *sides, repeats=3))
    return found


def _cartridge(bench: Bench) -> Findings:
    """A server of its own, so that the only prefix in its memory is the cartridge."""
    store = bench.folder / "cartridge"
    bench.said("making a cartridge")
    bench.workshop.publish(store, [CARTRIDGE])

    def shared(turn: int) -> list[Ask]:
        return [Ask(prompt, adapter=CARTRIDGE.name) for prompt in bench.prompts(CLIENTS, PROMPT, "cartridge", turn)]

    def bare(turn: int) -> list[Ask]:
        return [Ask(prompt) for prompt in bench.prompts(CLIENTS, PROMPT, "cartridge bare", turn)]

    with bench.own(store) as server:
        warm = [Ask(prompt, WARM_TOKENS, CARTRIDGE.name) for prompt in bench.prompts(CLIENTS, PROMPT, "warm cartridge")]
        with_it = bench.side(server, shared, CLIENTS, warm=warm, label="cartridge")
        without = bench.side(server, bare, CLIENTS, label="no adapter")
        comparison = bench.compare(
            f"{CLIENTS} clients on 4,096 virtual tokens", with_it, without, target=AIM, repeats=3
        )
        with server.awake():
            blocks, resident = (
                metric(server, f"waybill_{name}") for name in ("prefix_blocks_used", "resident_adapters")
            )
    note = f"({resident:.0f} resident adapter, {blocks:.0f} blocks for {CARTRIDGE.num_virtual_tokens:,} tokens)"
    return Findings([comparison], [Figure("copies of the cartridge in memory", resident, "", 1, note)])
