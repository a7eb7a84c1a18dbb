"""The device tensors that describe one forward to the GPU's kernels, always at the same addresses.

A captured graph holds addresses, not contents: it serves whatever these buffers hold when it is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.engine.model.attention.base import Row
from server.engine.model.uploads import Uploads

@dataclass(frozen=True, slots=True)
class BatchSize:
    """What one forward may hold at most. `blocks` are table entries of all rows together, prefixes included."""

    rows: int
    tokens: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a launch has to know of a forward beside the buffers' contents.

    `singles` rows compute one token, the others are cut into `tiles` tiles of queries; `longest` is the largest number
    of splits that one of the single rows has.
    """

    rows: int
    tokens: int
    singles: int
    tiles: int
    longest: int


class StepBuffers:
    """Lengths, places and block tables of one forward, int32 unless said otherwise.

    `positions` [tokens] int64 are absolute, `slots` [tokens] int64 say where a token's key goes (block * block size +
    place in it), `starts` [rows + 1] which tokens are a row's, `lengths` [rows] its tokens of segment B with the new
    ones, `prefix_lengths` [rows] those of segment A. `tables` are the blocks of all segments one after the other;
    `block_starts` and `prefix_starts` [rows] say where a row's begin. A prefix that several rows share stands there
    once. `singles` [rows] are the rows of one token; `tile_rows` and `tile_tokens` [tokens] cut the others into tiles.
    """

    def __init__(self, size: BatchSize, block_size: int, split: int, tile: int, device: torch.device) -> None:
        """`split` is how many keys one split has, `tile` how many new tokens of a row one tile has."""
        self.size = size
        self._block_size, self._split, self._tile = block_size, split, tile
        widths = {
            "positions": 2 * size.tokens,
            "slots": 2 * size.tokens,
            "starts": size.rows + 1,
            "lengths": size.rows,
            "prefix_lengths": size.rows,
            "block_starts": size.rows,
            "prefix_starts": size.rows,
            "singles": size.rows,
            "tile_rows": size.tokens,
            "tile_tokens": size.tokens,
            "tables": size.blocks,
        }
        total = sum(widths.values())
        self._uploads = Uploads(total, torch.int32, device)
        ends = np.cumsum(list(widths.values()))
        self._places = {
            name: slice(int(end) - width, int(end)) for (name, width), end in zip(widths.items(), ends, strict=True)
        }
        there = self._uploads.there
        self.positions = there[self._places["positions"]].view(torch.int64)
        self.slots = there[self._places["slots"]].view(torch.int64)
        self.starts = there[self._places["starts"]]
        self.lengths = there[self._places["lengths"]]
        self.prefix_lengths = there[self._places["prefix_lengths"]]
        self.block_starts = there[self._places["block_starts"]]
        self.prefix_starts = there[self._places["prefix_starts"]]
        self.singles = there[self._places["singles"]]
        self.tile_rows = there[self._places["tile_rows"]]
        self.tile_tokens = there[self._places["tile_tokens"]]
        self.tables = there[self._places["tables"]]

    def fill(self, rows: Sequence[Row]) -> Layout:
        """Describe a forward of these rows, whose tokens lie one row after the other. Raises ValueError if too large."""
        layout, used = self._write(self._uploads.take().numpy(), rows)
        self._uploads.send(used)
        return layout

    def _write(self, packed: np.ndarray, rows: Sequence[Row]) -> tuple[Layout, int]:
        places = self._places
        facts = np.array([(r.offset, r.count, r.start, r.prefix_len) for r in rows], dtype=np.int64).reshape(-1, 4)
        offsets, counts, begins, prefixes = facts.T
        num_rows, num_tokens = len(rows), int(counts.sum())
        if num_rows > self.size.rows or num_tokens > self.size.tokens:
            raise ValueError(f"{num_rows} rows of {num_tokens} tokens are more than {self.size} holds")
        tables, block_starts, prefix_starts = self._tables(rows)
        if len(tables) > self.size.blocks:
            raise ValueError(f"{len(tables)} blocks are more than {self.size} holds")

        row_of = np.repeat(np.arange(num_rows), counts)
        within = np.arange(num_tokens) - np.repeat(offsets, counts)
        own = within + begins[row_of]
        block = tables[block_starts[row_of] + own // self._block_size]

        def put(name: str, values: np.ndarray, dtype: type[np.generic] = np.int32) -> None:
            packed[places[name]].view(dtype)[: len(values)] = values

        put("positions", own + prefixes[row_of], np.int64)
        put("slots", block.astype(np.int64) * self._block_size + own % self._block_size, np.int64)
        put("starts", np.append(offsets, num_tokens))
        put("lengths", begins + counts)
        put("prefix_lengths", prefixes)
        put("block_starts", block_starts)
        put("prefix_starts", prefix_starts)
        singles = np.flatnonzero(counts == 1)
        put("singles", singles)
        several = np.flatnonzero(counts > 1)
        tiles = -(-counts[several] // self._tile)
        put("tile_rows", np.repeat(several, tiles))
        firsts = np.arange(int(tiles.sum())) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        put("tile_tokens", firsts * self._tile)
        put("tables", tables)
        splits = -(-prefixes[singles] // self._split) - (-(begins[singles] + 1) // self._split)
        layout = Layout(num_rows, num_tokens, len(singles), int(tiles.sum()), int(splits.max(initial=0)))
        return layout, places["tables"].start + len(tables)

    def _tables(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the blocks of all segments in one array, and where each row's B and A begin in it."""
        parts: list[tuple[int, ...]] = []
        block_starts, prefix_starts = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        at, known = 0, {}  # by identity first: rows of one prefix share the tuple
        for index, row in enumerate(rows):
            needed = -(-(row.start + row.count) // self._block_size)
            blocks = row.blocks if len(row.blocks) == needed else row.blocks[:needed]
            parts.append(blocks)
            block_starts[index] = at
            at += len(blocks)
            if row.prefix_len:
                place = known.get(row.prefix_blocks)
                if place is None:
                    place = known[row.prefix_blocks] = at
                    parts.append(row.prefix_blocks)
                    at += len(row.prefix_blocks)
                prefix_starts[index] = place
        flat = np.fromiter((block for part in parts for block in part), dtype=np.int64, count=at)
        return flat, block_starts, prefix_starts
