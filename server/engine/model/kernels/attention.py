"""Attention over KV blocks: split over keys for single tokens, tiled over queries for spans, and the write before.

Keys and values of a layer are `[num_blocks, num_kv_heads, 16, head_dim]`. Every length and block is read from the
static buffers of `attention.buffers`, so a captured launch serves whatever these hold later. Segment A (the prefix)
comes before segment B. Keys are taken in tiles, and for single tokens in splits, that are counted from their segment's
start: which numbers are added to which never depends on the batch. The online softmax is that of FlashAttention (Dao et
al. 2022, arXiv:2205.14135), the splits those of Flash-Decoding; query heads that share a key head are rows of one
matrix product.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_SIZE = 16
"""Tokens of a KV block."""


@triton.jit
def write_kernel(
    key,
    value,
    slots,
    keys,
    values,
    key_stride,
    value_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program copies one token's keys and values [HEADS, DIM] to its slot."""
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    flat = tl.arange(0, WIDTH)
    inside = flat < HEADS * DIM
    head = flat // DIM
    target = ((slot // BLOCK * HEADS + head) * BLOCK + slot % BLOCK) * DIM + flat % DIM
    token = token.to(tl.int64)
    tl.store(keys + target, tl.load(key + token * key_stride + flat, mask=inside, other=0.0), mask=inside)
    tl.store(values + target, tl.load(value + token * value_stride + flat, mask=inside, other=0.0), mask=inside)


@triton.jit
def zero_kernel(memory, blocks, num_blocks, SIZE: tl.constexpr, TILE: tl.constexpr):
    """One program clears one block of one layer's keys or values in `memory` [layers * 2, blocks, SIZE]."""
    block = tl.load(blocks + tl.program_id(0))
    first = (tl.program_id(1).to(tl.int64) * num_blocks + block) * SIZE
    for start in range(0, SIZE, TILE):
        place = start + tl.arange(0, TILE)
        tl.store(memory + first + place, tl.zeros([TILE], memory.dtype.element_ty), mask=place < SIZE)


@triton.jit
def _capped(scores, scale, SOFTCAP: tl.constexpr):
    """Scale scores, and squash them where the model does: cap * tanh(score / cap)."""
    scores = scores * scale
    if SOFTCAP > 0:
        # tanh by exponentials that cannot overflow.
        halves = tl.exp(-2.0 * tl.abs(scores / SOFTCAP))
        squashed = (1.0 - halves) / (1.0 + halves)
        scores = SOFTCAP * tl.where(scores < 0, -squashed, squashed)
    return scores


@triton.jit
def _tile(
    query,
    keys,
    values,
    table,
    start,
    end,
    low,
    high,
    most,
    total,
    mixed,
    head,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add keys `start : start + TILE` of a segment, below `end`, to the running softmax of the query rows.

    Row i sees keys from `low[i]` to `high[i]`, both counted in the segment.
    """
    index = start + tl.arange(0, TILE)
    inside = index < end
    block = tl.load(table + index // BLOCK, mask=inside, other=0).to(tl.int64)
    base = ((block * HEADS + head) * BLOCK + index % BLOCK) * DIM
    dims = tl.arange(0, DIM_PADDED)
    if DIM_PADDED == DIM:
        there = inside[:, None]
    else:
        there = inside[:, None] & (dims[None, :] < DIM)
    key = tl.load(keys + base[:, None] + dims[None, :], mask=there, other=0.0)
    scores = _capped(tl.dot(query, tl.trans(key), input_precision=PRECISION), scale, SOFTCAP)
    seen = inside[None, :] & (index[None, :] >= low[:, None]) & (index[None, :] <= high[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    peak = tl.maximum(most, tl.max(scores, 1))
    # A row that has seen nothing yet keeps -inf; its differences must not become NaN.
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    shrink = tl.exp(most - safe)
    weights = tl.exp(scores - safe[:, None])
    value = tl.load(values + base[:, None] + dims[None, :], mask=there, other=0.0)
    mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    total = total * shrink + tl.sum(weights, 1)
    return peak, total, mixed


@triton.jit
def decode_kernel(
    query,
    keys,
    values,
    rows,
    grouped,
    starts,
    lengths,
    prefix_lengths,
    tables,
    block_starts,
    prefix_starts,
    partial,
    sums,
    scale,
    query_stride,
    num_splits,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one row of one token, one key head, one split of its keys; not of a prefix that is `grouped`.

    Writes `partial` [num_rows, num_heads, num_splits, DIM], what the split's softmax mixes, unnormalised, and `sums`
    [num_rows, num_heads, num_splits, 2], its largest score and the sum of its weights.
    """
    place = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    row = tl.load(rows + place)
    prefix = tl.load(prefix_lengths + row)
    length = tl.load(lengths + row)
    splits_before = tl.cdiv(prefix, SPLIT)
    split += tl.load(grouped + place) * splits_before
    in_prefix = split < splits_before
    first = tl.where(in_prefix, split, split - splits_before) * SPLIT
    until = tl.where(in_prefix, prefix, length)
    if first < until:
        end = tl.minimum(first + SPLIT, until)
        before = tl.where(in_prefix, 0, prefix)
        table = tables + tl.where(in_prefix, tl.load(prefix_starts + row), tl.load(block_starts + row))
        token = tl.load(starts + row).to(tl.int64)
        lanes = tl.arange(0, GROUP_PADDED)
        dims = tl.arange(0, DIM_PADDED)
        heads = head * GROUP + lanes
        asked = (lanes[:, None] < GROUP) & (dims[None, :] < DIM)
        questions = tl.load(query + token * query_stride + heads[:, None] * DIM + dims[None, :], mask=asked, other=0.0)
        position = prefix + length - 1 - before  # of the query, counted in the segment
        high = tl.full([GROUP_PADDED], 0, tl.int32) + position
        if WINDOW > 0:
            oldest = tl.maximum(position - WINDOW + 1, 0)
        else:
            oldest = 0
        low = tl.full([GROUP_PADDED], 0, tl.int32) + oldest
        most = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
        total = tl.zeros([GROUP_PADDED], tl.float32)
        mixed = tl.zeros([GROUP_PADDED, DIM_PADDED], tl.float32)
        begin = first + tl.maximum(oldest - first, 0) // TILE * TILE
        for start in range(begin, end, TILE):
            most, total, mixed = _tile(
                questions,
                keys,
                values,
                table,
                start,
                end,
                low,
                high,
                most,
                total,
                mixed,
                head,
                scale,
                HEADS,
                DIM,
                DIM_PADDED,
                TILE,
                BLOCK,
                SOFTCAP,
                PRECISION,
            )
        part = (place.to(tl.int64) * (HEADS * GROUP) + heads) * num_splits + split
        tl.store(partial + part[:, None] * DIM + dims[None, :], mixed, mask=asked)
        tl.store(sums + part * 2, most, mask=lanes < GROUP)
        tl.store(sums + part * 2 + 1, total, mask=lanes < GROUP)


@triton.jit
def shared_kernel(
    query,
    keys,
    values,
    rows,
    members,
    group_firsts,
    group_counts,
    starts,
    lengths,
    prefix_lengths,
    tables,
    prefix_starts,
    partial,
    sums,
    scale,
    query_stride,
    num_splits,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    LANES: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one split of a prefix, one key head, up to LANES / GROUP_PADDED rows that stand behind that prefix.

    Its keys are read once for all of them (Hydragen, Juravsky et al. 2024, arXiv:2402.05099). Writes what
    `decode_kernel` would, row by row.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    count = tl.load(group_counts + tile)
    if count > 0:
        first_member = tl.load(group_firsts + tile)
        lanes = tl.arange(0, LANES)
        number = lanes // GROUP_PADDED
        member = lanes % GROUP_PADDED
        there = (number < count) & (member < GROUP)
        place = tl.load(members + first_member + tl.minimum(number, count - 1)).to(tl.int64)
        row = tl.load(rows + place)
        one = tl.load(rows + tl.load(members + first_member))
        prefix = tl.load(prefix_lengths + one)
        first = split * SPLIT
        if first < prefix:
            end = tl.minimum(first + SPLIT, prefix)
            table = tables + tl.load(prefix_starts + one)
            dims = tl.arange(0, DIM_PADDED)
            heads = head * GROUP + member
            asked = there[:, None] & (dims[None, :] < DIM)
            token = tl.load(starts + row).to(tl.int64)
            questions = tl.load(
                query + token[:, None] * query_stride + heads[:, None] * DIM + dims[None, :], mask=asked, other=0.0
            )
            low = tl.zeros([LANES], tl.int32)
            begin = first
            if WINDOW > 0:
                low = tl.maximum(prefix + tl.load(lengths + row) - WINDOW, 0)
                begin = first + tl.maximum(tl.min(low, 0) - first, 0) // TILE * TILE
            high = tl.zeros([LANES], tl.int32) + prefix
            most = tl.full([LANES], float("-inf"), tl.float32)
            total = tl.zeros([LANES], tl.float32)
            mixed = tl.zeros([LANES, DIM_PADDED], tl.float32)
            for start in range(begin, end, TILE):
                most, total, mixed = _tile(
                    questions,
                    keys,
                    values,
                    table,
                    start,
                    end,
                    low,
                    high,
                    most,
                    total,
                    mixed,
                    head,
                    scale,
                    HEADS,
                    DIM,
                    DIM_PADDED,
                    TILE,
                    BLOCK,
                    SOFTCAP,
                    PRECISION,
                )
            part = (place * (HEADS * GROUP) + heads) * num_splits + split
            tl.store(partial + part[:, None] * DIM + dims[None, :], mixed, mask=asked)
            tl.store(sums + part * 2, most, mask=there)
            tl.store(sums + part * 2 + 1, total, mask=there)


@triton.jit
def reduce_kernel(
    partial,
    sums,
    sinks,
    rows,
    starts,
    lengths,
    prefix_lengths,
    out,
    out_stride,
    num_splits,
    HEADS_ALL: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One program joins the splits of one row and head, in their order, and writes its `out` [HEADS_ALL, DIM]."""
    place = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(rows + place)
    splits = tl.cdiv(tl.load(prefix_lengths + row), SPLIT) + tl.cdiv(tl.load(lengths + row), SPLIT)
    dims = tl.arange(0, DIM_PADDED)
    inside = dims < DIM
    most = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    if SINKS:
        most = tl.load(sinks + head).to(tl.float32)
        total = total + 1.0
    mixed = tl.zeros([DIM_PADDED], tl.float32)
    first = (place.to(tl.int64) * HEADS_ALL + head) * num_splits
    for split in range(splits):
        part = first + split
        peak = tl.load(sums + part * 2)
        weight = tl.load(sums + part * 2 + 1)
        both = tl.maximum(most, peak)
        safe = tl.where(both == float("-inf"), 0.0, both)
        old, new = tl.exp(most - safe), tl.exp(peak - safe)
        mixed = mixed * old + tl.load(partial + part * DIM + dims, mask=inside, other=0.0) * new
        total = total * old + weight * new
        most = both
    token = tl.load(starts + row).to(tl.int64)
    tl.store(out + token * out_stride + head * DIM + dims, (mixed / total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def span_kernel(
    query,
    keys,
    values,
    tile_rows,
    tile_tokens,
    starts,
    lengths,
    prefix_lengths,
    tables,
    block_starts,
    prefix_starts,
    sinks,
    out,
    scale,
    query_stride,
    out_stride,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: QUERIES consecutive new tokens of one row, one key head, all keys that they see."""
    place = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(tile_rows + place)
    first = tl.load(tile_tokens + place)  # of the row's new tokens
    offset = tl.load(starts + row)
    count = tl.load(starts + row + 1) - offset
    prefix = tl.load(prefix_lengths + row)
    length = tl.load(lengths + row)
    lanes = tl.arange(0, QUERIES * GROUP_PADDED)
    number = first + lanes // GROUP_PADDED
    member = lanes % GROUP_PADDED
    heads = head * GROUP + member
    dims = tl.arange(0, DIM_PADDED)
    asked = (number[:, None] < count) & (member[:, None] < GROUP) & (dims[None, :] < DIM)
    token = (offset + number).to(tl.int64)
    questions = tl.load(
        query + token[:, None] * query_stride + heads[:, None] * DIM + dims[None, :], mask=asked, other=0.0
    )
    own = length - count + number  # the query's place in segment B
    zero = tl.zeros([QUERIES * GROUP_PADDED], tl.int32)
    last = tl.minimum(first + QUERIES, count) - 1 + length - count
    earliest = first + length - count
    most = tl.full([QUERIES * GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES * GROUP_PADDED], tl.float32)
    mixed = tl.zeros([QUERIES * GROUP_PADDED, DIM_PADDED], tl.float32)
    if SINKS:
        most = tl.load(sinks + heads, mask=member < GROUP, other=0.0).to(tl.float32)
        total = total + 1.0
    table = tables + tl.load(prefix_starts + row)
    begin = 0
    low = zero
    if WINDOW > 0:
        low = tl.maximum(own + prefix - WINDOW + 1, 0)
        begin = tl.maximum(earliest + prefix - WINDOW + 1, 0) // TILE * TILE
    for start in range(begin, prefix, TILE):
        most, total, mixed = _tile(
            questions,
            keys,
            values,
            table,
            start,
            prefix,
            low,
            zero + prefix,
            most,
            total,
            mixed,
            head,
            scale,
            HEADS,
            DIM,
            DIM_PADDED,
            TILE,
            BLOCK,
            SOFTCAP,
            PRECISION,
        )
    table = tables + tl.load(block_starts + row)
    begin = 0
    if WINDOW > 0:
        low = tl.maximum(own - WINDOW + 1, 0)
        begin = tl.maximum(earliest - WINDOW + 1, 0) // TILE * TILE
    for start in range(begin, last + 1, TILE):
        most, total, mixed = _tile(
            questions,
            keys,
            values,
            table,
            start,
            last + 1,
            low,
            own,
            most,
            total,
            mixed,
            head,
            scale,
            HEADS,
            DIM,
            DIM_PADDED,
            TILE,
            BLOCK,
            SOFTCAP,
            PRECISION,
        )
    # Lanes that stand for nobody have seen keys too, except where there is none at all.
    total = tl.where(total > 0, total, 1.0)
    tl.store(
        out + token[:, None] * out_stride + heads[:, None] * DIM + dims[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=asked,
    )
