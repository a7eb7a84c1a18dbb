"""Pin rotary frequencies that depend on the longest row of a batch, so that no request changes another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from server.engine.model.support import refuse

_PINNED = "pinned"


def pin_rotary(module: nn.Module, family: str, max_model_len: int) -> None:
    """Give every rotary embedding of the types "dynamic" and "longrope" the frequencies of `max_model_len` for good.

    transformers recomputes these from the largest position in the batch (`modeling_rope_utils.dynamic_rope_update`).
    They are computed here by the module itself, for a row of that length, so they are exactly what transformers uses
    there. Raises UnsupportedModel where another row's length still changes the result.
    """
    for rotary in module.modules():
        types = getattr(rotary, "rope_type", None)
        kinds = types.items() if isinstance(types, dict) else [(None, types)]
        batch_global = [layer for layer, kind in kinds if kind and ("dynamic" in kind or kind == "longrope")]
        for layer in batch_global:
            _rotate(rotary, [max_model_len - 1], layer)
        for layer in batch_global:
            _pin(rotary, layer)
        for layer in batch_global:
            alone, beside = _rotate(rotary, [1], layer), _rotate(rotary, [1, max_model_len - 1], layer)
            if any(not torch.equal(a[:, :1], b[:, :1]) for a, b in zip(alone, beside, strict=True)):
                reason = "its rotary frequencies depend on the longest request of a batch and cannot be pinned"
                raise refuse(family, reason)


def _pin(rotary: Any, layer: str | None) -> None:
    """An unknown type makes transformers leave the frequencies as they are."""
    if layer is None:
        rotary.rope_type = _PINNED
    else:
        rotary.rope_type = {**rotary.rope_type, layer: _PINNED}


@torch.no_grad()
def _rotate(rotary: Any, positions: list[int], layer: str | None) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [1, num_positions, rotary dims]."""
    device = next(rotary.buffers()).device
    layer_type = {} if layer is None else {"layer_type": layer}
    dummy = torch.zeros(1, device=device)
    cosines, sines = rotary(dummy, torch.tensor([positions], device=device), **layer_type)
    return cosines, sines
