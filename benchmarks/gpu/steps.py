"""How long one decode step takes, what its kernels are, and how much of a step Python needs."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.gpu.models import random_model, shapes
from benchmarks.gpu.predict import predict
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import kernels_of, milliseconds, synchronize, trace_of
from server.engine.model.attention.base import Row
from server.engine.model.attention.buffers import BatchSize
from server.engine.model.attention.hook import attach
from server.engine.model.attention.triton import TritonBackend
from server.engine.model.forward import Forward, PlainForward
from server.engine.model.fused.decoder import FusedDecoder
from server.engine.model.graphs import DecodeGraphs
from server.engine.model.load import LoadedModel


def run(setting: Setting) -> dict[str, Any]:
    """Return for every model and batch the step's milliseconds, and for the largest a table of kernels."""
    context = 16 if setting.dry else 1024
    batches = (1, 2) if setting.dry else (1, 16, 64, 256)
    found: dict[str, Any] = {}
    for shape in shapes(setting):
        model = random_model(shape, setting, max_model_len=2 * context)
        found[shape.name] = _steps(setting, shape, model, batches, context)
        del model
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _steps(
    setting: Setting, shape: Shape, model: LoadedModel, batches: tuple[int, ...], context: int
) -> dict[str, Any]:
    largest, ffn = max(batches), int(model.module.config.intermediate_size)
    each = context // 16
    blocks = largest * each
    backend = TritonBackend(model.kv_shape(blocks + 1, 16), BatchSize(largest, max(largest, 64), blocks + 2 * largest))
    attach(model.module, backend)
    table: list[dict[str, Any]] = []
    kernels: dict[str, list[dict[str, Any]]] = {}
    for kind in ("fused", "plain"):
        forward: Forward = PlainForward(model) if kind == "plain" else FusedDecoder(model, backend)
        graphs = DecodeGraphs(model, backend, forward, trash=blocks, max_rows=largest)
        backend.memory.normal_()
        for batch in batches if kind == "fused" else batches[:1] + batches[2:3]:
            rows = [Row(i, 1, context - 1, tuple(range(i * each, (i + 1) * each))) for i in range(batch)]
            ids = list(range(batch))
            for _ in range(0 if setting.dry else 3):
                graphs.run(rows, ids)

            def step(graphs: DecodeGraphs = graphs, rows: list[Row] = rows, ids: list[int] = ids) -> None:
                graphs.run(rows, ids)

            ms = milliseconds(step, setting.device, repeats=20)
            expected = predict(model, batch, context, float(setting.facts.get("copy_tb_s") or 1.0), ffn=ffn)
            row = {"forward": kind, "batch": batch, "context": context, "ms": ms, "tok_s": batch / ms * 1e3}
            row |= {
                "host_ms": _host(setting, step),
                "bound_ms": expected.memory_ms,
                "of_bound": expected.memory_ms / ms,
            }
            table.append(row)
            if batch in (1, 64):
                kernels[f"{kind} batch {batch}"] = _kernels(setting, step)
    return {"steps": table, "kernels": kernels}


def _host(setting: Setting, step: Any) -> float:
    """Milliseconds that the host is busy with a step, from a device that has nothing to do."""
    times = []
    for _ in range(1 if setting.dry else 5):
        synchronize(setting.device)
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def _kernels(setting: Setting, step: Any) -> list[dict[str, Any]]:
    """Return the kernels of a step by the time that they take: name, launches, microseconds, share."""
    rounds = 1 if setting.dry else 3
    with trace_of(setting.device, launches=True) as trace:
        for _ in range(rounds):
            step()
        synchronize(setting.device)
    rows = kernels_of(trace, setting.device, rounds)
    total = sum(row[2] for row in rows)
    return [
        {"name": name[:90], "launches": launches, "us": us, "share": us / total} for name, launches, us in rows[:16]
    ]
