"""What a decode step must move and multiply, and how fast it could be: what measurements are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Dimensions(Protocol):
    """What a prediction has to know of a model."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """One step: bytes of weights and of keys and values, floating-point operations, launches, and what these take."""

    weight_bytes: int
    kv_bytes: int
    flops: int
    launches: int
    memory_ms: float
    compute_ms: float


LAUNCHES_PER_LAYER = 10
LAUNCHES_BESIDE = 16
"""Embedding, carried ids, last norm, head, draw."""


def predict(
    model: Dimensions,
    batch: int,
    context: int,
    copy_tb_s: float,
    *,
    ffn: int,
    tflop_s: float = 790.0,
    itemsize: int = 2,
) -> Prediction:
    """Return the step of `batch` sequences with `context` keys each, on a card that copies so many TB/s.

    The embedding is looked up, not read; the head is read whole. `ffn` is the width of the gated MLP.
    """
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = model.hidden_size * (heads + 2 * kv) + heads * model.hidden_size + 3 * model.hidden_size * ffn
    weights = model.num_layers * layer + model.hidden_size * model.vocab_size
    kv_bytes = batch * context * model.num_layers * 2 * kv * itemsize
    flops = 2 * batch * weights + 4 * batch * context * heads * model.num_layers
    total = weights * itemsize + kv_bytes
    return Prediction(
        weight_bytes=weights * itemsize,
        kv_bytes=kv_bytes,
        flops=flops,
        launches=LAUNCHES_PER_LAYER * model.num_layers + LAUNCHES_BESIDE,
        memory_ms=total / copy_tb_s / 1e9,
        compute_ms=flops / tflop_s / 1e9,
    )
