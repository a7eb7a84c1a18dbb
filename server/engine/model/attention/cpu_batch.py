"""How the CPU backend lays a batch out: who shares a prefix, which blocks hold whose keys, what hides which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from server.engine.model.attention.base import Row

SAVED_BLOCKS = 4
"""A prefix is read once for all its sequences when that saves at least this many reads of a block.

A group costs some ten small operations per layer, which is about what it costs to read so many blocks.
"""


class SingleTokens:
    """Sequences that compute one token each, and either share a long prefix or are read apart.

    `tokens` index the packed row. `shared` are the blocks of the common prefix. All other blocks of all sequences
    stand in one list: `blocks[i]` belongs to sequence `owner[i]` and is its number `place[i]` of at most `width`.
    """

    def __init__(self, rows: Sequence[Row], block_size: int, *, share: bool) -> None:
        self.tokens = _index([row.offset for row in rows])
        self.shared = rows[0].prefix_blocks if share else ()
        self._size = block_size
        self._shared_len = rows[0].prefix_len if share else 0
        own = [_segments(row, block_size, own_only=share) for row in rows]
        self.width = max(len(segments) for segments in own)
        flat = [(owner, place, *entry) for owner, entries in enumerate(own) for place, entry in enumerate(entries)]
        table = torch.tensor(flat).T
        self.owner, self.place, self.blocks, self._first, self._filled = table
        self._queries = torch.tensor([row.prefix_len + row.start for row in rows])
        self._hidden: dict[int | None, Tensor] = {}

    def hidden(self, window: int | None) -> Tensor:
        """Return [num_sequences, 1, 1, (num_shared + width) * block_size], true at scores that must not count."""
        if window not in self._hidden:
            self._hidden[window] = self._make_hidden(window)[:, None, None]
        return self._hidden[window]

    def _make_hidden(self, window: int | None) -> Tensor:
        slots = torch.arange(self._size)
        hidden = torch.ones((len(self._queries), self.width, self._size), dtype=torch.bool)
        key_positions = self._first[:, None] + slots
        hidden[self.owner, self.place] = (slots >= self._filled[:, None]) | _too_old(
            self._queries[self.owner, None], key_positions, window
        )
        if not self.shared:
            return hidden.flatten(1)
        shared_positions = torch.arange(len(self.shared) * self._size)
        before = (shared_positions >= self._shared_len) | _too_old(self._queries[:, None], shared_positions, window)
        return torch.cat([before.expand(len(self._queries), -1), hidden.flatten(1)], dim=1)


class SpanKeys:
    """One sequence that computes several tokens. `tokens` cut the packed row, `blocks` are both segments'."""

    def __init__(self, row: Row, block_size: int) -> None:
        self.tokens = slice(row.offset, row.offset + row.count)
        segments = _segments(row, block_size, own_only=False)
        self.blocks = torch.tensor([block for block, _, _ in segments])
        slots = torch.arange(block_size)
        first = torch.tensor([first for _, first, _ in segments])[:, None]
        filled = torch.tensor([filled for _, _, filled in segments])[:, None]
        self._positions = (first + slots).flatten()
        self._filled = (slots < filled).flatten()
        self._queries = torch.arange(row.count)[:, None] + row.prefix_len + row.start
        self._visible: dict[int | None, Tensor] = {}
        self._bias: dict[int | None, Tensor] = {}

    def visible(self, window: int | None) -> Tensor:
        """Return [count, num_blocks * block_size], true where a query sees a key."""
        if window not in self._visible:
            seen = self._filled & (self._positions <= self._queries)
            self._visible[window] = seen & ~_too_old(self._queries, self._positions, window)
        return self._visible[window]

    def bias(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
        """Return [group * count, num_blocks * block_size]: 0 where a query sees a key, else minus infinity."""
        if window not in self._bias:
            seen = self.visible(window)
            bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
            self._bias[window] = bias.repeat(group, 1)
        return self._bias[window]


def split_rows(rows: Sequence[Row], block_size: int) -> tuple[tuple[SingleTokens, ...], tuple[SpanKeys, ...]]:
    """Return the batches of single tokens and the longer spans."""
    spans = tuple(SpanKeys(row, block_size) for row in rows if row.count > 1)
    singles = sorted((row for row in rows if row.count == 1), key=lambda row: row.prefix_blocks)
    batches: list[SingleTokens] = []
    apart: list[Row] = []
    for blocks, group in groupby(singles, key=lambda row: row.prefix_blocks):
        sharers = list(group)
        if (len(sharers) - 1) * len(blocks) >= SAVED_BLOCKS:
            batches.append(SingleTokens(sharers, block_size, share=True))
        else:
            apart += sharers
    if apart:
        batches.append(SingleTokens(sorted(apart, key=lambda row: row.offset), block_size, share=False))
    return tuple(batches), spans


def _segments(row: Row, block_size: int, *, own_only: bool) -> list[tuple[int, int, int]]:
    """Return (block, position of its first key, keys in it) for both segments, or for the sequence's own."""
    own_len = row.start + row.count
    parts = [(row.blocks, own_len, row.prefix_len)]
    if not own_only:
        parts.insert(0, (row.prefix_blocks, row.prefix_len, 0))
    return [
        (blocks[index], first + index * block_size, min(block_size, length - index * block_size))
        for blocks, length, first in parts
        for index in range(-(-length // block_size))
    ]


def _too_old(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Return where a key has fallen out of a query's sliding window; positions broadcast against each other."""
    if not window:
        return torch.zeros((), dtype=torch.bool)
    return queries - keys >= window


def _index(offsets: list[int]) -> Tensor | slice:
    """A slice where the tokens lie in a row: it needs no copy."""
    first = offsets[0]
    if offsets == list(range(first, first + len(offsets))):
        return slice(first, first + len(offsets))
    return torch.tensor(offsets)
