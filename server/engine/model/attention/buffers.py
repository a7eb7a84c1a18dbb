"""The device tensors that describe one forward to the GPU's kernels, always at the same addresses.

A captured graph holds addresses, not contents: it serves whatever these buffers hold when it is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from server.engine.model.attention.base import Row
from server.engine.model.uploads import Uploads

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What one forward may hold at most. `blocks` are table entries of all rows together, prefixes included."""

    rows: int
    tokens: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a launch has to know of a forward beside the buffers' contents.

    `singles` rows compute one token, the others are cut into `tiles` tiles of queries. A single row has `splits` splits
    at most, of which it reads `own` itself and `shared` with those behind the same prefix, in `groups` groups.
    """

    singles: int
    tiles: int
    splits: int
    own: int
    shared: int
    groups: int


@dataclass(frozen=True, slots=True)
class Cuts:
    """How work is cut: keys of a split, new tokens of a tile of queries, rows of a group behind one prefix."""

    split: int
    queries: int
    sharers: int
    long_prefix: int  # tokens from which a prefix is read for its rows together, however few they are


class StepBuffers:
    """Lengths, places and block tables of one forward, int32 unless said otherwise.

    `positions` [tokens] int64 are absolute, `slots` [tokens] int64 say where a token's key goes (block * block size +
    place in it), `starts` [rows + 1] which tokens are a row's, `lengths` [rows] its tokens of segment B with the new
    ones, `prefix_lengths` [rows] those of segment A. `tables` are the blocks of all segments one after the other;
    `block_starts` and `prefix_starts` [rows] say where a row's begin. A prefix that several rows share stands there
    once. `singles` [rows] are the rows of one token; `tile_rows` and `tile_tokens` [tokens] cut the others into tiles.
    Of the single rows, `grouped` [rows] are 1 where a long prefix is read for several together: groups of `members`
    [rows], each from `group_firsts` [rows] on and `group_counts` [rows] many.
    """

    def __init__(self, size: BatchSize, block_size: int, cuts: Cuts, device: torch.device) -> None:
        self.size = size
        self._block_size, self._cuts = block_size, cuts
        widths = {
            "positions": 2 * size.tokens,
            "slots": 2 * size.tokens,
            "starts": size.rows + 1,
            "lengths": size.rows,
            "prefix_lengths": size.rows,
            "block_starts": size.rows,
            "prefix_starts": size.rows,
            "singles": size.rows,
            "grouped": size.rows,
            "members": size.rows,
            "group_firsts": size.rows,
            "group_counts": size.rows,
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
        self.grouped = there[self._places["grouped"]]
        self.members = there[self._places["members"]]
        self.group_firsts = there[self._places["group_firsts"]]
        self.group_counts = there[self._places["group_counts"]]
        self.tile_rows = there[self._places["tile_rows"]]
        self.tile_tokens = there[self._places["tile_tokens"]]
        self.tables = there[self._places["tables"]]

    def fill(self, rows: Sequence[Row]) -> Layout:
        """Describe a forward of these rows, whose tokens lie one row after the other. Raises ValueError if too many."""
        layout, used = self._write(self._uploads.take().numpy(), rows)
        self._uploads.send(used)
        return layout

    def _write(self, packed: Numbers, rows: Sequence[Row]) -> tuple[Layout, int]:
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

        def put(name: str, values: Numbers, dtype: type[np.generic] = np.int32) -> None:
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
        tiles = -(-counts[several] // self._cuts.queries)
        put("tile_rows", np.repeat(several, tiles))
        firsts = np.arange(int(tiles.sum())) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        put("tile_tokens", firsts * self._cuts.queries)
        put("tables", tables)

        before = -(-prefixes[singles] // self._cuts.split)
        own = -(-(begins[singles] + 1) // self._cuts.split)
        grouped = prefixes[singles] >= self._cuts.long_prefix
        members, group_firsts, group_counts = self._groups(grouped, prefix_starts[singles])
        put("grouped", grouped)
        put("members", members)
        packed[places["group_counts"]] = 0  # more groups may be launched than there are
        put("group_firsts", group_firsts)
        put("group_counts", group_counts)
        layout = Layout(
            singles=len(singles),
            tiles=int(tiles.sum()),
            splits=int((before + own).max(initial=0)),
            own=int((own + np.where(grouped, 0, before)).max(initial=0)),
            shared=int(before[grouped].max(initial=0)),
            groups=len(group_counts),
        )
        return layout, places["tables"].start + len(tables)

    def _groups(self, grouped: Numbers, prefixes: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Return single rows prefix by prefix, where each group of at most `sharers` begins, and how many."""
        members = np.flatnonzero(grouped)
        members = members[np.argsort(prefixes[members], kind="stable")]
        firsts: list[int] = []
        counts: list[int] = []
        for place, prefix in enumerate(prefixes[members]):
            if firsts and prefixes[members[firsts[-1]]] == prefix and counts[-1] < self._cuts.sharers:
                counts[-1] += 1
            else:
                firsts.append(place)
                counts.append(1)
        return members, np.array(firsts, dtype=np.int64), np.array(counts, dtype=np.int64)

    def _tables(self, rows: Sequence[Row]) -> tuple[Numbers, Numbers, Numbers]:
        """Return the blocks of all segments in one array, and where each row's B and A begin in it."""
        parts: list[tuple[int, ...]] = []
        block_starts, prefix_starts = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        at = 0
        known: dict[tuple[int, ...], int] = {}
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
        flat = np.concatenate([np.array(part, dtype=np.int32) for part in parts]) if parts else np.zeros(0, np.int32)
        return flat, block_starts, prefix_starts
