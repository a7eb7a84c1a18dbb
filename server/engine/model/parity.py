"""Hold logits against what the base model computes alone: nothing packed, nothing compiled, nothing cached."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import DynamicCache

from server.core import Parity
from server.engine.model.load import LoadedModel
from server.engine.prefixes.read import AdapterTensors

TOLERANCE = 1e-4
"""Float32: the largest difference of a logit, in units of the logits' standard deviation where that is over 1."""

ADAPTER_TOLERANCE = 1e-3
"""The same behind an adapter that is verified: keys and values that are strange to a model amplify its rounding.

Random ones in all 30 layers of SmolLM2-135M gave up to 4.3e-4, trained adapters 0.2e-4 to 0.5e-4. In a tiny model, a
single cleared block of a prefix gave more than 0.1.
"""

ROUNDING = 0.2
"""Lower precision: the root mean square difference of the median row, over the logits' standard deviation.

The median, since a few rows of any text are chaotic: changing SmolLM2-135M's embeddings by one bfloat16 step moves the
worst row by up to 2.4, the median row by 0.05 to 0.09. Two correct forwards differ by up to 0.07; one that loses a
single token of the prefix by 0.24 and 0.48 in the two texts behind it.
"""


def compare(found: Tensor, expected: Tensor, dtype: torch.dtype, tolerance: float = TOLERANCE) -> Parity:
    """Return how far two sets of logits [num_rows, vocab_size], computed in `dtype`, are from each other.

    `tolerance` is for float32, in units of `TOLERANCE`.
    """
    difference = (found - expected).abs()
    deviation = max(float(expected.std(dim=-1).mean()), 1e-6)
    largest = float(difference.max())
    if dtype == torch.float32:
        error, allowed = largest, tolerance * max(1.0, deviation)
    else:
        error, allowed = float(difference.square().mean(dim=-1).sqrt().median()), ROUNDING * deviation
    same = int((found.argmax(dim=-1) == expected.argmax(dim=-1)).sum())
    return Parity(len(found), same, largest, deviation, error, allowed)


@torch.inference_mode()
def logits_alone(model: LoadedModel, tokens: tuple[int, ...], count: int, adapter: AdapterTensors) -> Tensor:
    """Return float32 logits [count, vocab_size] of the last `count` of `tokens`, as transformers computes them.

    One sequence with eager attention. Ids from `vocab_size` on name rows of the adapter's table; its keys and values,
    where it has any, are handed over as `past_key_values`, which is what PEFT does.
    """
    attention = model.module.config._attn_implementation
    ids = torch.tensor([tokens], device=model.device)
    inputs: dict[str, object] = {"use_cache": False}
    if adapter.kv is not None:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(adapter.kv.to(model.device)):
            cache.update(key[None], value[None], layer)
        inputs = {"past_key_values": cache, "use_cache": True}
    embeddings: Tensor = model.embed(ids.where(ids < model.vocab_size, 0))
    if adapter.table is not None:
        virtual = (ids[0] >= model.vocab_size).nonzero()[:, 0]
        embeddings[0, virtual] = adapter.table.to(embeddings)[ids[0, virtual] - model.vocab_size]
    if "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        inputs["logits_to_keep"] = count
    model.module.set_attn_implementation("eager")
    try:
        logits: Tensor = model.module(inputs_embeds=embeddings, **inputs).logits
    finally:
        model.module.set_attn_implementation(attention)
    return logits[0, -count:].float()
