"""Attention on a GPU: Triton kernels over KV blocks of 16 tokens, described by static buffers."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.model.attention.base import KVShape, Row
from server.engine.model.attention.buffers import BatchSize, Cuts, Layout, StepBuffers
from server.engine.model.uploads import upload

BLOCK_SIZE = 16

SPLIT = 256
"""Keys of one split. Fixed, so that what is added to what never depends on how many rows a batch has."""

QUERY_LANES = 64
"""Rows of the matrix products of a tile of queries: its tokens times the query heads of a key head."""

LONG_PREFIX = 512
"""Tokens from which a prefix is read once for all single rows behind it. It is so for a lone row too: whether a row's
numbers come from the one kernel or the other must not depend on its company."""


@dataclass(frozen=True, slots=True)
class Launching:
    """How the decode kernel is compiled: keys of a tile, warps of a program, tiles on their way at once."""

    tile: int
    warps: int
    stages: int


class TritonBackend:
    """KV memory of a GPU, and attention over it. `size` is what one forward may hold at most."""

    def __init__(
        self,
        shape: KVShape,
        size: BatchSize | None = None,
        *,
        long_prefix: int = LONG_PREFIX,
        split: int = SPLIT,
        decode: Launching | None = None,
    ) -> None:
        # Imported here: only who chooses this backend needs Triton.
        from server.engine.model.kernels import attention as kernels

        if shape.block_size != BLOCK_SIZE:
            raise ValueError(f"the triton backend has blocks of {BLOCK_SIZE} tokens, not {shape.block_size}")
        self.name = f"waybill_triton_{uuid.uuid4().hex}"
        self.shape = shape
        self._kernels = kernels
        size = size or BatchSize(rows=64, tokens=4096, blocks=2 * shape.num_blocks + 64)
        # [num_layers, keys or values, num_blocks, num_kv_heads, block_size, head_dim]
        self.memory = torch.zeros(
            (shape.num_layers, 2, shape.num_blocks, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim),
            dtype=shape.dtype,
            device=shape.device,
        )
        group = (shape.num_heads or 4 * shape.num_kv_heads) // shape.num_kv_heads
        together = max(1, QUERY_LANES // _power(group))
        self._cuts = Cuts(split, together, together, long_prefix)
        self._decode_by = decode or _decoding(_power(shape.head_dim), shape.dtype)
        self.buffers = StepBuffers(size, BLOCK_SIZE, self._cuts, shape.device)
        self.layout = Layout(0, 0, 0, 0, 0, 0)
        self._precision = "ieee" if shape.dtype == torch.float32 else "tf32"

    def begin(self, rows: Sequence[Row]) -> None:
        """Describe the next forward."""
        self.layout = self.buffers.fill(rows)

    def launch_key(self) -> Hashable:
        """What the launches of the forward just begun depend on beside the buffers' contents."""
        layout = self.layout
        counts = (layout.splits, layout.own, layout.shared, layout.groups)
        return layout.singles, layout.tiles, *(_rounded(count) for count in counts)

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
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        found = self.read(
            layer,
            query[0].transpose(0, 1),
            scaling=scaling,
            window=sliding_window,
            softcap=softcap,
            sinks=s_aux,
        )
        return found[None], None

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the new tokens' keys and values [num_tokens, num_kv_heads, head_dim] into their slots."""
        heads, dim = self.shape.num_kv_heads, self.shape.head_dim
        key, value = _packed(key), _packed(value)
        self._kernels.write_kernel[(key.shape[0],)](
            key,
            value,
            self.buffers.slots,
            self.memory[layer, 0],
            self.memory[layer, 1],
            key.stride(0),
            value.stride(0),
            HEADS=heads,
            DIM=dim,
            WIDTH=_power(heads * dim),
            BLOCK=BLOCK_SIZE,
        )

    def read(
        self,
        layer: int,
        query: Tensor,
        *,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend with `query` [num_tokens, num_heads, head_dim], which is returned mixed, after `write`."""
        query = _packed(query)
        scaling = self.shape.head_dim**-0.5 if scaling is None else scaling
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        if self.layout.singles:
            self._decode(layer, query, out, scaling, window or 0, softcap or 0.0, sinks)
        if self.layout.tiles:
            self._spans(layer, query, out, scaling, window or 0, softcap or 0.0, sinks)
        return out

    def zero(self, blocks: Sequence[int]) -> None:
        """Clear blocks in every layer."""
        if not blocks:
            return
        shape = self.shape
        self._kernels.zero_kernel[(len(blocks), 2 * shape.num_layers)](
            self.memory,
            upload(blocks, shape.device),
            shape.num_blocks,
            SIZE=shape.num_kv_heads * BLOCK_SIZE * shape.head_dim,
            TILE=2048,
        )

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy a block's first `tokens` tokens to another in every layer, and clear the rest of that."""
        if source != target:
            self.memory[:, :, target, :, :tokens] = self.memory[:, :, source, :, :tokens]
        self.memory[:, :, target, :, tokens:] = 0

    def install(self, blocks: Sequence[int], prefix: Tensor) -> None:
        """Copy a prefix KV [num_layers, 2, num_kv_heads, length, head_dim] into blocks, from their start."""
        length = prefix.shape[3]
        whole, rest = divmod(length, BLOCK_SIZE)
        there = prefix.to(self.memory, non_blocking=True)
        if whole:
            cut = (
                there[:, :, :, : whole * BLOCK_SIZE]
                .reshape(*there.shape[:3], whole, BLOCK_SIZE, there.shape[4])
                .transpose(2, 3)
            )
            self.memory[:, :, upload(blocks[:whole], self.shape.device)] = cut
        if rest:
            self.memory[:, :, blocks[whole], :, :rest] = there[:, :, :, whole * BLOCK_SIZE :]

    def _decode(
        self, layer: int, query: Tensor, out: Tensor, scaling: float, window: int, softcap: float, sinks: Tensor | None
    ) -> None:
        shape, buffers, layout = self.shape, self.buffers, self.layout
        singles, splits = layout.singles, _rounded(layout.splits)
        num_heads, group = query.shape[1], query.shape[1] // shape.num_kv_heads
        # From torch's allocator, and so from a graph's own memory where one is being captured.
        parts = singles * num_heads * splits
        partial = torch.empty(parts * shape.head_dim, dtype=torch.float32, device=shape.device)
        sums = torch.empty(2 * parts, dtype=torch.float32, device=shape.device)
        padded = _power(shape.head_dim)
        keys, values = self.memory[layer]
        if layout.groups:
            lanes = _power(group) * self._cuts.sharers
            self._kernels.shared_kernel[(_rounded(layout.groups), shape.num_kv_heads, _rounded(layout.shared))](
                query,
                keys,
                values,
                buffers.singles,
                buffers.members,
                buffers.group_firsts,
                buffers.group_counts,
                buffers.starts,
                buffers.lengths,
                buffers.prefix_lengths,
                buffers.tables,
                buffers.prefix_starts,
                partial,
                sums,
                scaling,
                query.stride(0),
                splits,
                GROUP=group,
                GROUP_PADDED=_power(group),
                LANES=max(16, lanes),
                HEADS=shape.num_kv_heads,
                DIM=shape.head_dim,
                DIM_PADDED=padded,
                SPLIT=self._cuts.split,
                TILE=64 if padded <= 128 and shape.dtype != torch.float32 else 32,
                BLOCK=BLOCK_SIZE,
                WINDOW=window,
                SOFTCAP=softcap,
                PRECISION=self._precision,
                num_warps=4,
                num_stages=2,
            )
        self._kernels.decode_kernel[(singles, shape.num_kv_heads, _rounded(layout.own))](
            query,
            keys,
            values,
            buffers.singles,
            buffers.grouped,
            buffers.starts,
            buffers.lengths,
            buffers.prefix_lengths,
            buffers.tables,
            buffers.block_starts,
            buffers.prefix_starts,
            partial,
            sums,
            scaling,
            query.stride(0),
            splits,
            GROUP=group,
            GROUP_PADDED=max(16, _power(group)),
            HEADS=shape.num_kv_heads,
            DIM=shape.head_dim,
            DIM_PADDED=padded,
            SPLIT=self._cuts.split,
            TILE=self._decode_by.tile,
            BLOCK=BLOCK_SIZE,
            WINDOW=window,
            SOFTCAP=softcap,
            PRECISION=self._precision,
            num_warps=self._decode_by.warps,
            num_stages=self._decode_by.stages,
        )
        self._kernels.reduce_kernel[(singles, num_heads)](
            partial,
            sums,
            sinks if sinks is not None else sums,
            buffers.singles,
            buffers.starts,
            buffers.lengths,
            buffers.prefix_lengths,
            out,
            out.stride(0),
            splits,
            HEADS_ALL=num_heads,
            DIM=shape.head_dim,
            DIM_PADDED=padded,
            SPLIT=self._cuts.split,
            SINKS=sinks is not None,
            num_warps=1 if padded <= 128 else 2,
        )

    def _spans(
        self, layer: int, query: Tensor, out: Tensor, scaling: float, window: int, softcap: float, sinks: Tensor | None
    ) -> None:
        shape, buffers = self.shape, self.buffers
        group = query.shape[1] // shape.num_kv_heads
        padded = _power(shape.head_dim)
        self._kernels.span_kernel[(self.layout.tiles, shape.num_kv_heads)](
            query,
            self.memory[layer, 0],
            self.memory[layer, 1],
            buffers.tile_rows,
            buffers.tile_tokens,
            buffers.starts,
            buffers.lengths,
            buffers.prefix_lengths,
            buffers.tables,
            buffers.block_starts,
            buffers.prefix_starts,
            sinks if sinks is not None else query,
            out,
            scaling,
            query.stride(0),
            out.stride(0),
            GROUP=group,
            GROUP_PADDED=_power(group),
            HEADS=shape.num_kv_heads,
            DIM=shape.head_dim,
            DIM_PADDED=padded,
            QUERIES=self._cuts.queries,
            TILE=64 if padded <= 128 and shape.dtype != torch.float32 else 32,
            BLOCK=BLOCK_SIZE,
            WINDOW=window,
            SOFTCAP=softcap,
            SINKS=sinks is not None,
            PRECISION=self._precision,
            num_warps=4,
            num_stages=2,
        )


def _decoding(padded_dim: int, dtype: torch.dtype) -> Launching:
    if dtype == torch.float32 or padded_dim > 128:
        return Launching(32 if padded_dim > 128 else 64, 4, 2)
    return Launching(128, 4, 2)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _rounded(count: int) -> int:
    """Round a number of launches up to one of few: each is a graph of its own."""
    if count <= 8:
        return count
    step = _power(count) // 8
    return -(-count // step) * step


def _packed(tensor: Tensor) -> Tensor:
    """Return [num_tokens, num_heads, head_dim] whose tokens each lie in one run."""
    dim = tensor.shape[2]
    return tensor if tensor.stride(2) == 1 and tensor.stride(1) == dim else tensor.contiguous()
