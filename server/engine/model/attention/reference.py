"""Attention in the plainest torch that is right: one sequence at a time, every mask explicit."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.model.attention.base import KVShape, Row


class ReferenceBackend:
    """The backend that others are compared with. Slow, on any device."""

    def __init__(self, shape: KVShape) -> None:
        self.name = f"waybill_reference_{uuid.uuid4().hex}"
        self.shape = shape
        self._rows: tuple[Row, ...] = ()
        # [num_layers, keys or values, num_blocks, block_size, num_kv_heads, head_dim]
        self._memory = torch.zeros(
            (shape.num_layers, 2, shape.num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim),
            dtype=shape.dtype,
            device=shape.device,
        )

    def begin(self, rows: Sequence[Row]) -> None:
        """Describe the next forward."""
        self._rows = tuple(rows)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Write this layer's keys and values, then attend one sequence after the other (see `AttentionBackend`)."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        outputs: list[Tensor] = []
        for row in self._rows:
            here = slice(row.offset, row.offset + row.count)
            self._write(layer, row, key[0, :, here], value[0, :, here])
            keys, values = self._read(layer, row)
            visible = _visible(row, sliding_window, query.device)
            outputs.append(attend_one(query[0, :, here], keys, values, visible, scaling, softcap, s_aux))
        return torch.cat(outputs)[None], None

    def zero(self, blocks: Sequence[int]) -> None:
        """Clear blocks in every layer."""
        self._memory[:, :, list(blocks)] = 0

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy a block's first `tokens` tokens to another in every layer, and clear the rest of that."""
        self._memory[:, :, target, :tokens] = self._memory[:, :, source, :tokens]
        self._memory[:, :, target, tokens:] = 0

    def install(self, blocks: Sequence[int], prefix: Tensor) -> None:
        """Copy a prefix KV [num_layers, 2, num_kv_heads, length, head_dim] into blocks, from their start."""
        for token in range(prefix.shape[3]):
            block, slot = blocks[token // self.shape.block_size], token % self.shape.block_size
            self._memory[:, :, block, slot] = prefix[:, :, :, token].to(self._memory)

    def _write(self, layer: int, row: Row, keys: Tensor, values: Tensor) -> None:
        for index in range(row.count):
            token = row.start + index
            block, slot = row.blocks[token // self.shape.block_size], token % self.shape.block_size
            self._memory[layer, 0, block, slot] = keys[:, index]
            self._memory[layer, 1, block, slot] = values[:, index]

    def _read(self, layer: int, row: Row) -> tuple[Tensor, Tensor]:
        """Return keys and values [num_kv_heads, prefix_len + start + count, head_dim], in order of position."""
        segments = ((row.prefix_blocks, row.prefix_len), (row.blocks, row.start + row.count))
        both = [self._memory[layer, :, list(blocks)].flatten(1, 2)[:, :length] for blocks, length in segments]
        keys, values = torch.cat(both, dim=1).transpose(1, 2)
        return keys, values


def attend_one(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Attention of one sequence, softmax in float32.

    `query` [num_heads, num_queries, head_dim]; `keys` and `values` [num_kv_heads, num_keys, head_dim]; `visible`
    [num_queries, num_keys], true where a query sees a key; `s_aux` [num_heads] are sink logits that take part in the
    softmax and add nothing (gpt-oss). Returns [num_queries, num_heads, head_dim].
    """
    group = query.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)
    scores = torch.matmul(query, keys.transpose(1, 2)).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if s_aux is not None:
        sinks = s_aux.float().view(-1, 1, 1).expand(-1, query.shape[1], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.matmul(weights.to(values.dtype), values).transpose(0, 1)


def _visible(row: Row, window: int | None, device: torch.device) -> Tensor:
    """Return [count, prefix_len + start + count]: key k is seen by query q when k <= q and q - k < window."""
    length = row.prefix_len + row.start + row.count
    key_position = torch.arange(length, device=device)
    query_position = key_position[length - row.count :, None]
    visible = key_position <= query_position
    return visible & (query_position - key_position < window) if window else visible
