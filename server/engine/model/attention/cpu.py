"""Attention on the CPU in plain torch: single tokens batched over sequences, longer spans one by one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from server.engine.model.attention.base import KVShape, Row
from server.engine.model.attention.cpu_batch import SingleTokens, SpanKeys, split_rows
from server.engine.model.attention.reference import attend_one


class CpuBackend:
    """KV memory in blocks [num_blocks, num_kv_heads, block_size, head_dim] per layer, keys and values apart.

    What depends only on the rows (block tables, masks) is made once in `begin`, or by the first layer that needs it.
    """

    def __init__(self, shape: KVShape) -> None:
        self.name = f"waybill_cpu_{uuid.uuid4().hex}"
        self.shape = shape
        # [num_layers, keys or values, num_blocks, num_kv_heads, block_size, head_dim]
        self._memory = torch.zeros(
            (shape.num_layers, 2, shape.num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim),
            dtype=shape.dtype,
            device=shape.device,
        )
        self._singles: tuple[SingleTokens, ...] = ()
        self._spans: tuple[SpanKeys, ...] = ()
        self._block = self._slot = torch.zeros(0, dtype=torch.long)

    def begin(self, rows: Sequence[Row]) -> None:
        """Describe the next forward."""
        size = self.shape.block_size
        tokens = [(row.blocks, token) for row in rows for token in range(row.start, row.start + row.count)]
        self._block = torch.tensor([blocks[token // size] for blocks, token in tokens])
        self._slot = torch.tensor([token % size for _, token in tokens])
        self._singles, self._spans = split_rows(rows, size)

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
        """Write this layer's keys and values, then attend (see `AttentionBackend`)."""
        keys, values = self._memory[int(module.layer_idx)]  # type: ignore[arg-type]
        keys[self._block, :, self._slot] = key[0].transpose(0, 1)
        values[self._block, :, self._slot] = value[0].transpose(0, 1)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        queries = query[0].transpose(0, 1)  # [num_tokens, num_heads, head_dim]
        output = torch.empty_like(queries, memory_format=torch.contiguous_format)
        for singles in self._singles:
            output[singles.tokens] = _attend_singles(
                singles, queries[singles.tokens], keys, values, scaling, sliding_window, softcap, s_aux
            )
        for span in self._spans:
            output[span.tokens] = _attend_span(
                span, query[0, :, span.tokens], keys, values, scaling, sliding_window, softcap, s_aux
            )
        return output[None], None

    def zero(self, blocks: Sequence[int]) -> None:
        """Clear blocks in every layer."""
        self._memory[:, :, list(blocks)] = 0

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy a block's first `tokens` tokens to another in every layer, and clear the rest of that."""
        self._memory[:, :, target, :, :tokens] = self._memory[:, :, source, :, :tokens]
        self._memory[:, :, target, :, tokens:] = 0

    def install(self, blocks: Sequence[int], prefix: Tensor) -> None:
        """Copy a prefix KV [num_layers, 2, num_kv_heads, length, head_dim] into blocks, from their start."""
        for block, part in zip(blocks, torch.split(prefix, self.shape.block_size, dim=3), strict=False):
            self._memory[:, :, block, :, : part.shape[3]] = part.to(self._memory)


def _attend_singles(
    batch: SingleTokens,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """One query per sequence: `queries` and the result are [num_sequences, num_heads, head_dim].

    Scores against the shared prefix are one product for all sequences, scores against a sequence's own blocks one
    small product per block; one softmax goes over both.
    """
    count, num_heads, width = queries.shape
    kv_heads, size = keys.shape[1:3]
    grouped = queries.reshape(count, kv_heads, num_heads // kv_heads, width)
    scores = _own_scores(batch, grouped, keys)
    if batch.shared:
        scores = torch.cat([_shared_scores(grouped, _take(keys, batch.shared)), scores], dim=-1)
    scores = scores.mul_(scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill_(batch.hidden(window), float("-inf"))
    if s_aux is not None:
        sinks = s_aux.float().view(1, kv_heads, -1, 1).expand(count, -1, -1, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = weights.to(values.dtype)
    shared = len(batch.shared) * size
    output = _own_output(batch, weights[..., shared:], values)
    if batch.shared:
        output += _shared_output(weights[..., :shared], _take(values, batch.shared))
    return output.view(count, num_heads, width)


def _own_scores(batch: SingleTokens, grouped: Tensor, keys: Tensor) -> Tensor:
    """Return float32 [num_sequences, num_kv_heads, group, width * block_size]; places without a block hold anything."""
    products = torch.matmul(grouped.index_select(0, batch.owner), _gather(keys, batch.blocks).transpose(2, 3)).float()
    if batch.width == 1:
        return products
    _, kv_heads, group, size = products.shape
    padded = products.new_empty((len(grouped), kv_heads, group, batch.width, size))
    padded[batch.owner, :, :, batch.place] = products
    return padded.flatten(3)


def _own_output(batch: SingleTokens, weights: Tensor, values: Tensor) -> Tensor:
    """Return [num_sequences, num_kv_heads, group, head_dim]."""
    if batch.width == 1:
        return torch.matmul(weights, _gather(values, batch.blocks))
    count, kv_heads, group, _ = weights.shape
    parts = weights.view(count, kv_heads, group, batch.width, -1)[batch.owner, :, :, batch.place]
    products = torch.matmul(parts, _gather(values, batch.blocks))
    return products.new_zeros((count, *products.shape[1:])).index_add_(0, batch.owner, products)


def _shared_scores(grouped: Tensor, keys: Tensor) -> Tensor:
    """Return float32 [num_sequences, num_kv_heads, group, num_blocks * block_size]; `keys` are [num_blocks, …]."""
    count, kv_heads, group, width = grouped.shape
    together = grouped.transpose(0, 1).reshape(kv_heads, count * group, width)
    products = torch.matmul(together, keys.transpose(2, 3))  # [num_blocks, num_kv_heads, count * group, block_size]
    products = products.float().view(len(keys), kv_heads, count, group, -1)
    return products.permute(2, 1, 3, 0, 4).flatten(3)


def _shared_output(weights: Tensor, values: Tensor) -> Tensor:
    """Return [num_sequences, num_kv_heads, group, head_dim]; `values` are [num_blocks, …]."""
    count, kv_heads, group, _ = weights.shape
    parts = weights.view(count, kv_heads, group, len(values), -1).permute(3, 1, 0, 2, 4).flatten(2, 3)
    products = torch.matmul(parts, values).float().sum(dim=0)  # [num_kv_heads, count * group, head_dim]
    return products.to(weights.dtype).view(kv_heads, count, group, -1).transpose(0, 1)


def _take(memory: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Return blocks of [num_blocks, …], without a copy where they lie in a row."""
    first = blocks[0]
    if blocks == tuple(range(first, first + len(blocks))):
        return memory[first : first + len(blocks)]
    return _gather(memory, torch.tensor(blocks))


def _gather(memory: Tensor, blocks: Tensor) -> Tensor:
    """Copy blocks of [num_blocks, …]; twice as fast as indexing, since each is one run of memory."""
    return memory.index_select(0, blocks)


def _attend_span(
    span: SpanKeys,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """One sequence's queries [num_heads, count, head_dim]; returns [count, num_heads, head_dim].

    Heads that share keys are laid one after another as more queries, so keys are never repeated.
    """
    kv_heads = keys.shape[1]
    own_keys, own_values = (_gather(part, span.blocks).transpose(0, 1).flatten(1, 2) for part in (keys, values))
    if softcap is not None or s_aux is not None:
        return attend_one(query, own_keys, own_values, span.visible(window), scaling, softcap, s_aux)
    num_heads, count, width = query.shape
    group = num_heads // kv_heads
    folded = query.reshape(1, kv_heads, group * count, width)
    mask = span.bias(window, group, query.dtype)
    output = scaled_dot_product_attention(folded, own_keys[None], own_values[None], attn_mask=mask, scale=scaling)
    return output.view(num_heads, count, width).transpose(0, 1)
