"""What a decode step must move and multiply, and how fast it could be: what measurements are held against.

`python -m benchmarks.gpu.predict` prints the table of `docs/performance.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.gpu.shapes import LLAMA_8B
from benchmarks.markdown import table


class Dimensions(Protocol):
    """What a prediction has to know of a model."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """The dimensions of a model that nobody has loaded."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Sizes:
        """Read them from what a configuration is made of."""
        return cls(
            config["vocab_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """One step: bytes of weights and of keys and values, floating-point operations, launches, and what these take.

    `memory_ms` is what reading everything once takes. A step cannot read and multiply at once throughout: the linear
    layers take `weights_ms` or `linears_ms`, whichever is longer, and attention `kv_ms`.
    """

    weight_bytes: int
    kv_bytes: int
    flops: int
    launches: int
    memory_ms: float
    weights_ms: float
    linears_ms: float
    kv_ms: float

    @property
    def least_ms(self) -> float:
        return max(self.weights_ms, self.linears_ms) + self.kv_ms

    @property
    def bounds(self) -> str:
        """What the least time goes to, the larger part first."""
        first = "weights" if self.weights_ms >= self.linears_ms else "arithmetic"
        parts = {first: self.least_ms - self.kv_ms, "keys and values": self.kv_ms}
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {ms / self.least_ms:.0%}".replace("%", " %") for name, ms in ordered)


LAUNCHES_PER_LAYER = 10
LAUNCHES_BESIDE = 16
"""Embedding, carried ids, last norm, head, draw."""

H200_COPY_TB_S = 4.3
H200_TFLOP_S = 790.0
"""What one H200 was seen to copy, read and written, and to multiply in bfloat16, before the engine ran on any."""

BATCHES = (1, 64, 256)
CONTEXT = 1024


def predict(
    model: Dimensions,
    batch: int,
    context: int,
    copy_tb_s: float,
    *,
    ffn: int,
    tflop_s: float = H200_TFLOP_S,
    itemsize: int = 2,
) -> Prediction:
    """Return the step of `batch` sequences with `context` keys each, on a card that copies so many TB/s.

    The embedding is looked up, not read; the head is read whole. `ffn` is the width of the gated MLP.
    """
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = model.hidden_size * (heads + 2 * kv) + heads * model.hidden_size + 3 * model.hidden_size * ffn
    weights = model.num_layers * layer + model.hidden_size * model.vocab_size
    kv_bytes = batch * context * model.num_layers * 2 * kv * itemsize
    linears = 2 * batch * weights
    flops = linears + 4 * batch * context * heads * model.num_layers
    total = weights * itemsize + kv_bytes
    return Prediction(
        weight_bytes=weights * itemsize,
        kv_bytes=kv_bytes,
        flops=flops,
        launches=LAUNCHES_PER_LAYER * model.num_layers + LAUNCHES_BESIDE,
        memory_ms=total / copy_tb_s / 1e9,
        weights_ms=weights * itemsize / copy_tb_s / 1e9,
        linears_ms=linears / tflop_s / 1e9,
        kv_ms=kv_bytes / copy_tb_s / 1e9,
    )


def predictions() -> dict[int, Prediction]:
    """Return the steps of Llama-3.1-8B on an H200, by the number of sequences."""
    sizes, ffn = Sizes.of(LLAMA_8B), LLAMA_8B["intermediate_size"]
    return {batch: predict(sizes, batch, CONTEXT, H200_COPY_TB_S, ffn=ffn) for batch in BATCHES}


def predicted() -> str:
    """Return them as a table."""
    heads = (
        "sequences",
        "weights, GB",
        "keys and values, GB",
        "GFLOP",
        "launches",
        "weights, ms",
        "linear layers' arithmetic, ms",
        "keys and values, ms",
        "step, ms",
        "tokens/s",
        "bound by",
    )
    rows = [
        (
            str(batch),
            f"{step.weight_bytes / 1e9:.1f}",
            f"{step.kv_bytes / 1e9:.1f}",
            f"{step.flops / 1e9:,.0f}",
            str(step.launches),
            f"{step.weights_ms:.2f}",
            f"{step.linears_ms:.2f}",
            f"{step.kv_ms:.2f}",
            f"{step.least_ms:.2f}",
            f"{batch / step.least_ms * 1e3:,.0f}",
            step.bounds,
        )
        for batch, step in predictions().items()
    ]
    return table(heads, rows)


if __name__ == "__main__":
    print(predicted())
