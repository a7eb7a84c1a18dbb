"""One trial forward that shows what each attention layer of a model hands to the attention interface."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.model.attention.hook import attach, detach
from server.engine.model.support import refuse


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention layer's shapes; `window` in tokens, None where it sees everything before it."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None


class _Recorder:
    """Stands in for attention and writes down what it was called with."""

    def __init__(self) -> None:
        self.name = f"waybill_probe_{uuid.uuid4().hex}"
        self.calls: list[tuple[int | None, bool, Layer, int]] = []

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        layer = Layer(query.shape[1], key.shape[1], key.shape[-1], kwargs.get("sliding_window") or None)
        index = getattr(module, "layer_idx", None)
        causal = getattr(module, "is_causal", True) is not False
        self.calls.append((index, causal, layer, value.shape[-1]))
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[-1])), None


@torch.inference_mode()
def probe(module: PreTrainedModel, family: str, max_model_len: int) -> tuple[Layer, ...]:
    """Return the attention layers, in order. Raises UnsupportedModel where they do not fit the KV memory.

    The last of three tokens stands at the last position that will ever be used, so that a table of learned positions
    that is too short shows here.
    """
    recorder = _Recorder()
    attach(module, recorder)
    try:
        device = module.get_input_embeddings().weight.device
        ids = torch.zeros((1, 3), dtype=torch.long, device=device)
        positions = torch.tensor([[0, 1, max_model_len - 1]], device=device)
        module(input_ids=ids, position_ids=positions, use_cache=False)
    except (IndexError, TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        reason = f"a trial forward up to position {max_model_len - 1} failed: {error or type(error).__name__}"
        raise refuse(family, reason) from error
    finally:
        detach(module, recorder)
    return _layers(family, recorder, module.config.get_text_config(decoder=True).num_hidden_layers)


def _layers(family: str, recorder: _Recorder, expected: int) -> tuple[Layer, ...]:
    """Check what was recorded against what the KV memory and the backends assume."""
    if not recorder.calls:
        reason = "its attention does not go through transformers' attention interface, and would ignore prefixes"
        raise refuse(family, reason)
    indices = [index for index, *_ in recorder.calls]
    if indices != list(range(expected)):
        reason = f"its {expected} layers call the attention interface {len(indices)} times, not once each in order"
        raise refuse(family, reason)
    if not all(causal for _, causal, *_ in recorder.calls):
        raise refuse(family, "its attention is not causal")
    layers = tuple(layer for _, _, layer, _ in recorder.calls)
    if any(layer.head_dim != value_dim for _, _, layer, value_dim in recorder.calls):
        raise refuse(family, "its keys and values differ in width, and the KV memory has one width for both")
    if len({(layer.num_kv_heads, layer.head_dim) for layer in layers}) > 1:
        raise refuse(family, "its layers differ in KV heads or head size, and the KV memory has one shape for all")
    return layers
