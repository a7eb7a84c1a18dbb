"""What masks cost: 32 clients with a JSON schema each, against as many without. Ours against ours, the same tokens."""

from __future__ import annotations

import json

from benchmarks.asks import NEW_TOKENS, Ask
from benchmarks.bench import PROMPT, WARM_TOKENS, Bench
from benchmarks.results import Findings

AIM = 0.9
CLIENTS = 32
ROUNDS = 3


def run(bench: Bench) -> Findings:
    """Measure the price of structured output."""
    ours = bench.ours()
    count = CLIENTS * (1 if bench.options.quick else ROUNDS)

    def structured(turn: int) -> list[Ask]:
        prompts = bench.prompts(count, PROMPT, "grammar", turn)
        return [Ask(prompt, schema=schema(i % CLIENTS)) for i, prompt in enumerate(prompts)]

    def bare(turn: int) -> list[Ask]:
        return [Ask(prompt) for prompt in bench.prompts(count, PROMPT, "grammar bare", turn)]

    prompts = bench.prompts(CLIENTS, PROMPT, "grammar warm")
    warm = [Ask(prompt, WARM_TOKENS, schema=schema(i)) for i, prompt in enumerate(prompts)]
    with_schemas = bench.side(ours, structured, CLIENTS, warm=warm, label="JSON schemas")
    without = bench.side(ours, bare, CLIENTS, label="no schema")
    return Findings([bench.compare("32 clients, 32 JSON schemas", with_schemas, without, repeats=4, target=AIM)])


def schema(number: int) -> str:
    """Return one client's schema: a list so long that its shortest text takes more than `NEW_TOKENS` tokens."""
    item = {
        "type": "object",
        "properties": {
            f"name{number}": {"type": "string", "minLength": 3, "maxLength": 24 + number},
            "kind": {"enum": ["plain", "fancy", f"number {number}"]},
            "score": {"type": "number", "minimum": 0, "maximum": 10 + number},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 4},
        },
        "required": [f"name{number}", "kind", "score", "tags"],
        "additionalProperties": False,
    }
    items = {"type": "array", "items": item, "minItems": NEW_TOKENS, "maxItems": 2 * NEW_TOKENS}
    return json.dumps({"type": "object", "properties": {"items": items}, "required": ["items"]})
