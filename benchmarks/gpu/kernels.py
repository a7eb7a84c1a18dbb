"""Every attention kernel against the reference, on random ragged batches, and how fast each reads its keys."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import captured, milliseconds
from server.engine.model.attention.base import KVShape, Row
from server.engine.model.attention.buffers import BatchSize
from server.engine.model.attention.reference import ReferenceBackend
from server.engine.model.attention.triton import LONG_PREFIX, Launching, TritonBackend

HEADS = [(128, 32, 8), (64, 9, 3), (80, 4, 4), (96, 14, 2), (256, 8, 4)]
"""Head size, query heads, key heads."""

FLAGS: list[dict[str, Any]] = [
    {},
    {"sliding_window": 37},
    {"softcap": 3.0},
    {"sliding_window": 300, "softcap": 20.0, "s_aux": True},
]
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest difference; values are normal, so outputs are about 1 and less."""


def run(setting: Setting) -> dict[str, Any]:
    """Return the largest differences, by format and head size, and the decode kernel's bytes per second."""
    worst: dict[str, float] = {}
    dtypes = [torch.float32] if setting.dry else [torch.float32, torch.bfloat16]
    heads = HEADS[1:2] if setting.dry else HEADS
    enough = setting.left * 0.7  # compiling takes most of it
    for dim, query_heads, key_heads in heads:
        for dtype in dtypes:
            for index, flags in enumerate(FLAGS):
                if setting.left < enough:
                    worst["not reached from"] = dim
                    return {"differences": worst, "decode": _speed(setting)}
                label = f"{str(dtype).removeprefix('torch.')} head {dim} flags {index}"
                error = _differ(setting, dtype, dim, query_heads, key_heads, flags, seed=index)
                worst[label] = error
                if not error <= BOUNDS[dtype]:
                    raise AssertionError(f"{label}: differs by {error:.3g}, and {BOUNDS[dtype]:.3g} is allowed")
    return {"differences": worst, "decode": _speed(setting)}


def _differ(
    setting: Setting, dtype: torch.dtype, dim: int, heads: int, kv_heads: int, flags: dict[str, Any], seed: int
) -> float:
    """Play random steps through both backends and return the largest difference."""
    device, luck = setting.device, random.Random(seed)
    num_blocks = 40 if setting.dry else 400
    shape = KVShape(1, kv_heads, dim, num_blocks, 16, dtype, device, heads)
    long_prefix = 32 if setting.dry else LONG_PREFIX  # one of the prefixes is read for its rows together
    size = BatchSize(64, 4096, 8 * num_blocks)
    reference, found = ReferenceBackend(shape), TritonBackend(shape, size, long_prefix=long_prefix)
    found.memory.fill_(float("nan"))  # nothing that was not written may count
    found.zero(range(num_blocks))
    free = list(range(num_blocks))
    luck.shuffle(free)
    prefixes = []
    for length in (0, 5, 40) if setting.dry else (0, 5, 300, 1100):
        blocks = tuple(free.pop() for _ in range(-(-length // 16)))
        prefixes.append((length, blocks))
        if length:
            kv = torch.randn((1, 2, kv_heads, length, dim), generator=torch.Generator().manual_seed(length))
            for backend in (reference, found):
                backend.install(blocks, kv.to(device, dtype))
    count = 3 if setting.dry else 20
    lengths = [0] * count
    owned: list[list[int]] = [[] for _ in range(count)]
    of = prefixes if setting.dry else [luck.choice(prefixes) for _ in range(count)]
    sinks = torch.randn(heads, device=device, dtype=dtype) if flags.get("s_aux") else None
    options = {**flags, "s_aux": sinks, "scaling": dim**-0.5}
    worst = 0.0
    for step in range(3 if setting.dry else 4):
        rows, offset = [], 0
        for number in range(count):
            grown = 1 if step >= 2 or luck.random() < 0.3 else luck.randrange(1, 9 if setting.dry else 200)
            needed = -(-(lengths[number] + grown) // 16) - len(owned[number])
            if needed > len(free):
                continue
            owned[number] += [free.pop() for _ in range(needed)]
            length, blocks = of[number]
            rows.append(Row(offset, grown, lengths[number], tuple(owned[number]), length, blocks))
            lengths[number] += grown
            offset += grown
        layer = SimpleNamespace(layer_idx=0)
        query = torch.randn((1, heads, offset, dim), device=device, dtype=dtype)
        key, value = (torch.randn((1, kv_heads, offset, dim), device=device, dtype=dtype) for _ in range(2))
        answers = []
        for backend in (reference, found):
            backend.begin(rows)
            answers.append(backend.attend(layer, query, key, value, None, **options)[0].float())  # type: ignore[arg-type]
        worst = max(worst, float((answers[0] - answers[1]).abs().max()))
        if not bool(answers[1].isfinite().all()):
            return float("nan")
    return worst


def tune(setting: Setting) -> dict[str, Any]:
    """Time the decode kernel compiled in several ways."""
    table = []
    dim, heads, kv_heads = (16, 4, 2) if setting.dry else (128, 32, 8)
    ways = [Launching(64, 4, 3), Launching(64, 4, 4), Launching(128, 4, 2), Launching(128, 4, 3), Launching(128, 8, 3)]
    ways += [Launching(64, 8, 3), Launching(64, 2, 4), Launching(32, 2, 5), Launching(32, 4, 5)]
    for split in (256,) if setting.dry else (256, 128, 512):
        for way in ways[:1] if setting.dry else ways if split == 256 else ways[:4]:
            row: dict[str, Any] = {"split": split, "tile": way.tile, "warps": way.warps, "stages": way.stages}
            for batch, context in [(2, 16)] if setting.dry else [(1, 1100), (64, 1100), (256, 1100)]:
                row[f"us at {batch} x {context}"] = _time(
                    setting, dim, heads, kv_heads, batch, context, split=split, decode=way
                )
            table.append(row)
    return {"decode": table}


def _speed(setting: Setting) -> list[dict[str, float]]:
    """Time one layer's decode attention at the sizes of an 8B model."""
    table = []
    dim, heads, kv_heads = (16, 4, 2) if setting.dry else (128, 32, 8)
    sizes = (
        [(2, 16)] if setting.dry else [(1, 1024), (1, 8192), (16, 1024), (64, 256), (64, 1024), (64, 1100), (256, 1024)]
    )
    for batch, context in sizes:
        us = _time(setting, dim, heads, kv_heads, batch, context)
        bytes_read = 2 * batch * context * kv_heads * dim * setting.dtype.itemsize
        table.append({"batch": batch, "context": context, "us": us, "tb_s": bytes_read / us / 1e6})
    return table


def _time(setting: Setting, dim: int, heads: int, kv_heads: int, batch: int, context: int, **options: Any) -> float:
    """Return microseconds of one layer's decode attention."""
    each = -(-context // 16)
    layers = 1 if setting.dry else 8  # more than the cache holds
    shape = KVShape(layers, kv_heads, dim, batch * each + 1, 16, setting.dtype, setting.device, heads)
    backend = TritonBackend(shape, BatchSize(batch, batch, batch * each + 1), **options)
    backend.memory.normal_()
    backend.begin([Row(i, 1, context - 1, tuple(range(i * each, (i + 1) * each))) for i in range(batch)])
    query = torch.randn((batch, heads, dim), device=setting.device, dtype=setting.dtype)

    def read() -> None:
        for layer in range(layers):
            backend.read(layer, query)

    return milliseconds(captured(read, setting.device), setting.device) / layers * 1e3
