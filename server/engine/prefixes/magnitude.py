"""Judge whether an adapter's values are of a size that the base model can have learned to use."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from server.engine.prefixes.read import AdapterTensors
from server.errors import AdapterRejected

MAX_RATIO = 10_000.0
"""Row RMS over the base's own. Trained adapters stay below 50; far above, logits overflow or one row drowns all."""


class Scale(Protocol):
    """Root mean squares of the base model: of its embedding rows, and per layer of keys and values [num_layers, 2]."""

    @property
    def embedding(self) -> float: ...

    @property
    def kv(self) -> Tensor: ...


def require_sane_magnitude(adapter: AdapterTensors, scale: Scale) -> None:
    """Raise AdapterRejected when a row's RMS is over `MAX_RATIO` times the base's."""
    if adapter.table is not None:
        rows = _rms(adapter.table, (1,))
        _judge(
            float(rows.max()),
            scale.embedding,
            f"row {int(rows.argmax())} of the soft prompt",
            "the embedding's",
        )
    if adapter.kv is not None:
        # Layer by layer: a float64 copy of a long cartridge would take twice its size.
        per_row = torch.stack([_rms(layer, (1, 3)) for layer in adapter.kv])  # [num_layers, 2, length]
        ratio = per_row / scale.kv.to(per_row).clamp_min(1e-12)[:, :, None]
        layer, part, row = (int(i) for i in _unravel(int(ratio.argmax()), tuple(ratio.shape)))
        what = f"row {row} of the {'values' if part else 'keys'} of layer {layer}"
        _judge(float(per_row[layer, part, row]), float(scale.kv[layer, part]), what, "that layer's")


def _judge(found: float, own: float, what: str, whose: str) -> None:
    if found > MAX_RATIO * max(own, 1e-12):
        raise AdapterRejected(
            f"{what} has a root mean square of {found:.3g}, over {MAX_RATIO:,.0f} times {whose} {own:.3g}: "
            "no trained adapter looks like this"
        )


def _rms(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """RMS in float64: squares of large float32 values overflow."""
    rms: Tensor = tensor.double().square().mean(dim=dims).sqrt()
    return rms


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    place: list[int] = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        place.append(rest)
    return tuple(reversed(place))
