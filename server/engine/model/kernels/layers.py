"""What a Llama-like layer does between its matrix products, one kernel each."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm_kernel(
    hidden,
    residual,
    weight,
    normed,
    total,
    epsilon,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ADDS: tl.constexpr,
):
    """One program: a token's `total` = hidden + residual, and `normed` = its RMS norm (arXiv:1910.07467).

    Sums are of float32; what is rounded to the model's format, and when, is as in transformers.
    """
    token = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, WIDTH_PADDED)
    inside = dims < WIDTH
    row = tl.load(hidden + token * WIDTH + dims, mask=inside, other=0.0)
    if ADDS:
        row = row + tl.load(residual + token * WIDTH + dims, mask=inside, other=0.0)
        tl.store(total + token * WIDTH + dims, row, mask=inside)
    exact = row.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(exact * exact, 0) / WIDTH + epsilon)
    rounded = (exact * scale).to(row.dtype)
    tl.store(normed + token * WIDTH + dims, rounded * tl.load(weight + dims, mask=inside, other=0.0), mask=inside)


@triton.jit
def rotate_write_kernel(
    projected,
    cosines,
    sines,
    positions,
    slots,
    query_weight,
    key_weight,
    query,
    keys,
    values,
    epsilon,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMS: tl.constexpr,
    TURNS: tl.constexpr,
):
    """One program: one head of one token of `projected` [tokens, HEADS + 2 * KV_HEADS, DIM], DIM = 2 * HALF.

    Queries and keys are normed where the model does so (NORMS), and turned by their position where it does (TURNS;
    RoPE, arXiv:2104.09864, the halves of a head against each other). Queries go to `query`, keys and values to their
    slot.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, HALF_PADDED)
    inside = dims < HALF
    source = projected + (token * (HEADS + 2 * KV_HEADS) + head) * DIM
    low = tl.load(source + dims, mask=inside, other=0.0)
    high = tl.load(source + HALF + dims, mask=inside, other=0.0)
    slot = tl.load(slots + token)
    if head < HEADS + KV_HEADS:
        kind = low.dtype
        first, second = low.to(tl.float32), high.to(tl.float32)
        if NORMS:
            squares = tl.sum(first * first, 0) + tl.sum(second * second, 0)
            scale = 1.0 / tl.sqrt(squares / DIM + epsilon)
            if head < HEADS:
                left = tl.load(query_weight + dims, mask=inside, other=0.0)
                right = tl.load(query_weight + HALF + dims, mask=inside, other=0.0)
            else:
                left = tl.load(key_weight + dims, mask=inside, other=0.0)
                right = tl.load(key_weight + HALF + dims, mask=inside, other=0.0)
            first = ((first * scale).to(kind) * left).to(tl.float32)
            second = ((second * scale).to(kind) * right).to(tl.float32)
        if TURNS:
            place = tl.load(positions + token) * HALF
            cosine = tl.load(cosines + place + dims, mask=inside, other=0.0)
            sine = tl.load(sines + place + dims, mask=inside, other=0.0)
            turned = first * cosine - second * sine
            second = second * cosine + first * sine
            first = turned
        low = first.to(kind)
        high = second.to(kind)
    if head < HEADS:
        target = query + (token * HEADS + head) * DIM
        tl.store(target + dims, low, mask=inside)
        tl.store(target + HALF + dims, high, mask=inside)
    elif head < HEADS + KV_HEADS:
        target = keys + ((slot // BLOCK * KV_HEADS + head - HEADS) * BLOCK + slot % BLOCK) * DIM
        tl.store(target + dims, low, mask=inside)
        tl.store(target + HALF + dims, high, mask=inside)
    else:
        target = values + ((slot // BLOCK * KV_HEADS + head - HEADS - KV_HEADS) * BLOCK + slot % BLOCK) * DIM
        tl.store(target + dims, low, mask=inside)
        tl.store(target + HALF + dims, high, mask=inside)


@triton.jit
def swiglu_kernel(gate_up, out, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """One program: part of a token's silu(gate) * up (arXiv:2002.05202), from `gate_up` [tokens, 2 * WIDTH]."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = dims < WIDTH
    gate = tl.load(gate_up + token * 2 * WIDTH + dims, mask=inside, other=0.0)
    up = tl.load(gate_up + token * 2 * WIDTH + WIDTH + dims, mask=inside, other=0.0)
    exact = gate.to(tl.float32)
    active = exact / (1.0 + tl.exp(-exact))
    tl.store(out + token * WIDTH + dims, active.to(gate.dtype) * up, mask=inside)
