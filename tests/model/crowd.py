"""A random crowd of sequences over shared prefixes, played step by step against an attention backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.model.attention.base import AttentionBackend, KVShape, Row


@dataclass(frozen=True)
class Heads:
    """Shapes and flags of one attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int = 8
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def options(self) -> dict[str, Any]:
        s_aux = torch.linspace(-1, 2, self.num_heads) if self.sinks else None
        return {"scaling": self.head_dim**-0.5, "sliding_window": self.window, "softcap": self.softcap, "s_aux": s_aux}


@dataclass(frozen=True)
class Move:
    """One sequence computes `count` more tokens."""

    sequence: int
    count: int


class Layer(nn.Module):
    """What a backend sees of an attention module."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx


@dataclass
class Crowd:
    """Tokens, blocks and lengths of all sequences; the same for every backend that it is played against.

    `prefixes[i]` is the length of the prefix of sequence i's group `groups[i]`. Everything is float32, rounded to the
    shape's type. Scores of attention have a standard deviation of `loudness`.
    """

    heads: Heads
    shape: KVShape
    prefixes: Sequence[int]
    groups: Sequence[int]
    steps: Sequence[Sequence[Move]]
    seed: int = 0
    sick: int | None = None  # a prefix of this length is NaN throughout
    loudness: float = 1.0

    def play(self, backend: AttentionBackend, layer: int = 0) -> list[Tensor]:
        """Return each step's output [num_tokens, num_heads, head_dim]."""
        generator = torch.Generator().manual_seed(self.seed)
        free = count()
        prefix_blocks = [self._take(free, length) for length in self.prefixes]
        for blocks, length in zip(prefix_blocks, self.prefixes, strict=True):
            backend.zero(blocks)
            backend.install(blocks, self.prefix(length))
        blocks: dict[int, tuple[int, ...]] = dict.fromkeys(range(len(self.groups)), ())
        done = dict.fromkeys(blocks, 0)
        outputs = []
        for step in self.steps:
            rows, offset = [], 0
            for move in step:
                need = -(-(done[move.sequence] + move.count) // self.shape.block_size) - len(blocks[move.sequence])
                fresh = tuple(next(free) for _ in range(need))
                backend.zero(fresh)
                blocks[move.sequence] += fresh
                group = self.groups[move.sequence]
                start = done[move.sequence]
                rows.append(
                    Row(offset, move.count, start, blocks[move.sequence], self.prefixes[group], prefix_blocks[group])
                )
                done[move.sequence] += move.count
                offset += move.count
            query, key, value = self._projections(offset, generator)
            backend.begin(rows)
            output, _ = backend.attend(Layer(layer), query, key, value, None, **self.heads.options())
            outputs.append(output[0])
        return outputs

    def expected(self) -> list[Tensor]:
        """The same from first principles: one sequence, one query, one head at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        group_size = self.heads.num_heads // self.heads.num_kv_heads
        past = {i: self.prefix(self.prefixes[group])[0].unbind(0) for i, group in enumerate(self.groups)}
        options = self.heads.options()
        outputs = []
        for step in self.steps:
            query, key, value = self._projections(sum(move.count for move in step), generator)
            output, token = torch.zeros(query.shape[2], self.heads.num_heads, self.heads.head_dim), 0
            for move in step:
                for _ in range(move.count):
                    keys = torch.cat([past[move.sequence][0], key[0, :, token : token + 1]], dim=1)
                    values = torch.cat([past[move.sequence][1], value[0, :, token : token + 1]], dim=1)
                    past[move.sequence] = (keys, values)
                    first = max(0, keys.shape[1] - self.heads.window) if self.heads.window else 0
                    for head in range(self.heads.num_heads):
                        scores = keys[head // group_size, first:] @ query[0, head, token] * options["scaling"]
                        if self.heads.softcap:
                            scores = self.heads.softcap * torch.tanh(scores / self.heads.softcap)
                        if self.heads.sinks:
                            scores = torch.cat([scores, options["s_aux"][head : head + 1]])
                        weights = scores.softmax(0)[: keys.shape[1] - first]
                        output[token, head] = weights @ values[head // group_size, first:]
                    token += 1
            outputs.append(output)
        return outputs

    def prefix(self, length: int) -> Tensor:
        """The prefix KV [num_layers, 2, num_kv_heads, length, head_dim]."""
        generator = torch.Generator().manual_seed(1000 + length)
        size = (self.shape.num_layers, 2, self.heads.num_kv_heads, length, self.heads.head_dim)
        values = torch.randn(size, generator=generator).to(self.shape.dtype).float()
        return values * float("nan") if length == self.sick else values

    def _projections(self, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (self.heads.num_heads, self.heads.num_kv_heads, self.heads.num_kv_heads)
        query, key, value = (torch.randn(1, size, tokens, self.heads.head_dim, generator=generator) for size in sizes)
        query, key, value = (part.to(self.shape.dtype).float() for part in (query * self.loudness, key, value))
        return query, key, value

    def _take(self, free: count[int], length: int) -> tuple[int, ...]:
        return tuple(next(free) for _ in range(-(-length // self.shape.block_size)))


def shape(heads: Heads, *, num_blocks: int = 400, block_size: int = 4, num_layers: int = 1) -> KVShape:
    """A float32 KV memory for these heads."""
    return KVShape(
        num_layers, heads.num_kv_heads, heads.head_dim, num_blocks, block_size, torch.float32, torch.device("cpu")
    )
