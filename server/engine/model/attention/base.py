"""The interface of an attention backend, and the batch description that it works on.

A backend owns the KV memory. Every sequence has two segments: A, the adapter's prefix (read-only, shared), and B, its
own tokens. Key j of A has absolute position j, key j of B position `len(A) + j`. A query at position q sees every key
at position k <= q, and, in a layer with a sliding window W, only those with q - k < W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class KVShape:
    """The KV memory to make. `num_blocks` blocks of `block_size` tokens in every layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_blocks: int
    block_size: int
    dtype: torch.dtype
    device: torch.device
    num_heads: int | None = None  # query heads, where a backend cuts its work by them

    @staticmethod
    def block_bytes(num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers, keys and values."""
        return num_layers * 2 * num_kv_heads * head_dim * block_size * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a packed forward: queries `offset : offset + count` of the packed row.

    Query i is token `start + i` of segment B. `blocks` cover `start + count` tokens, `prefix_blocks` `prefix_len`.
    """

    offset: int
    count: int
    start: int
    blocks: tuple[int, ...]
    prefix_len: int = 0
    prefix_blocks: tuple[int, ...] = ()


class AttentionBackend(Protocol):
    """Keys and values in blocks, and attention over them.

    `name` is unique to the instance: transformers knows the backend's `attend` by it.
    """

    name: str
    shape: KVShape

    def begin(self, rows: Sequence[Row]) -> None:
        """Describe the next forward. Called once before it; every layer then calls `attend` once."""
        ...

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Write this layer's new keys and values, then attend.

        `query` [1, num_heads, num_tokens, head_dim], `key` and `value` [1, num_kv_heads, num_tokens, head_dim], both
        after RoPE and not repeated; returns [1, num_tokens, num_heads, head_dim]. The signature is that of
        `transformers.AttentionInterface`: `scaling`, `sliding_window`, `softcap` and `s_aux` arrive in `kwargs`.
        """
        ...

    def zero(self, blocks: Sequence[int]) -> None:
        """Clear blocks in every layer, so that nothing of a former holder can be read or poison a masked slot."""
        ...

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy a block's first `tokens` tokens to another in every layer, and clear the rest of that.

        With one block for both, only the rest is cleared.
        """
        ...

    def install(self, blocks: Sequence[int], prefix: Tensor) -> None:
        """Copy a prefix KV [num_layers, 2, num_kv_heads, length, head_dim] into blocks, from their start."""
        ...
