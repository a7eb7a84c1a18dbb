"""The whole engine: tokens per second by batch, what adapters cost, and how long one takes to come in."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import engine_for, random_model, save_prefix, save_soft_prompt, shapes
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import kernels_of, milliseconds, trace_of
from server.core import AdapterSource, SamplingParams
from server.engine.loading import Sizes
from server.engine.loop import Engine
from server.engine.messages import StepReport, Submit
from server.engine.model.attention.triton import TritonBackend
from server.engine.model.load import LoadedModel

Question = tuple[tuple[int, ...], AdapterSource | None]


def run(setting: Setting) -> dict[str, Any]:
    """Return output tokens per second while all sequences decode."""
    dry = setting.dry
    context, fresh = (16, 5) if dry else (1024, 96)
    batches = (1, 2) if dry else (1, 64, 256)
    many = 2 if dry else 64
    shape = shapes(setting)[0]
    long = 32 if dry else 4096
    model = random_model(shape, setting, max_model_len=160 if dry else 5120)
    largest = max(batches)
    each = (context + fresh) // 16 + 2
    blocks = max(largest * each, many * (each + 10) + long // 16 + 64)
    sizes = Sizes(blocks, 16, blocks // 2, largest, 64 if dry else 4096, model.max_model_len, prompt_cache=False)
    engine = engine_for(model, sizes)
    found: dict[str, Any] = {"decode": [], "adapters": {}}
    sequence = 0
    for batch in batches:
        questions = _questions(model, batch, context, seed=batch)
        found["decode"].append({"batch": batch, **_decode(engine, questions, fresh, sequence)})
        sequence += batch
    found["card"] = _card(setting, engine, _questions(model, many, context, seed=5), fresh, sequence)
    sequence += many
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters: dict[str, Any] = {}
        for length in (8,) if dry else (32, 128):
            sources = [save_soft_prompt(folder, number, length, model) for number in range(many)]
            base, behind = [], []
            for turn in range(1 if dry else 2):  # in turns
                questions = _questions(model, many, context, seed=1000 * length + turn)
                base.append(_decode(engine, questions, fresh, sequence)["tok_s"])
                with_adapters = [(tokens, source) for (tokens, _), source in zip(questions, sources, strict=True)]
                behind.append(_decode(engine, with_adapters, fresh, sequence + many)["tok_s"])
                sequence += 2 * many
            ratio = statistics.median(b / a for a, b in zip(base, behind, strict=True))
            adapters[f"{many} of {length}"] = {"none_tok_s": max(base), "tok_s": max(behind), "ratio": ratio}
        sharers = 2 if dry else 32
        cartridge = save_prefix(folder, 7, long, model)
        short = _questions(model, sharers, 5 if dry else 64, seed=77)
        none = _decode(engine, short, fresh, sequence)["tok_s"]
        shared = _decode(engine, [(t, cartridge) for t, _ in short], fresh, sequence + sharers)["tok_s"]
        adapters[f"{sharers} on a cartridge of {long}"] = {"none_tok_s": none, "tok_s": shared, "ratio": shared / none}
        found["adapters"] = adapters
    del engine
    found["swap_in"] = _swap_in(setting, model)
    return found


def _questions(model: LoadedModel, count: int, length: int, seed: int) -> list[Question]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.vocab_size, (count, length), generator=generator).tolist()
    return [(tuple(row), None) for row in ids]


def _decode(engine: Engine, questions: list[Question], fresh: int, first: int) -> dict[str, float]:
    """Ask everything at once; measure the steps in which every sequence draws and none is prefilling."""
    for index, (tokens, source) in enumerate(questions):
        engine.handle(Submit(first + index, tokens, SamplingParams(max_tokens=fresh), source))
    pending = {first + index for index in range(len(questions))}
    began = time.perf_counter()
    prefilled = 0.0
    steps: list[float] = []
    cpu: list[float] = []
    last = None
    while pending:
        for message in engine.drain(block=engine.waits):
            assert message is not None
            engine.handle(message)
        cpu_began = time.thread_time()
        for reply in engine.step():
            if not isinstance(reply, StepReport):
                continue
            assert not reply.failures, reply.failures
            now = time.perf_counter()
            stats = reply.stats
            assert stats is not None
            if stats.batch_sequences == stats.batch_tokens == len(questions):
                if last is not None:
                    steps.append(now - last)
                    cpu.append(time.thread_time() - cpu_began)
                elif not prefilled:
                    prefilled = now - began
                last = now
            else:
                last = None
            pending -= {event.sequence for event in reply.events if event.finish is not None}
    # The first steps may have captured their graphs.
    steps, cpu = steps[len(steps) // 4 :], cpu[len(cpu) // 4 :]
    step = statistics.median(steps) if steps else float("nan")
    mean = statistics.fmean(steps) if steps else float("nan")
    return {
        "tok_s": len(questions) / mean,
        "step_ms": step * 1e3,
        "cpu_ms": statistics.median(cpu) * 1e3 if cpu else float("nan"),
        "prefill_tok_s": sum(len(tokens) for tokens, _ in questions) / prefilled if prefilled else float("nan"),
    }


def _card(setting: Setting, engine: Engine, questions: list[Question], fresh: int, first: int) -> dict[str, Any]:
    """Return the share of time that the card is busy while all sequences decode, and what a step's kernels are."""
    for index, (tokens, source) in enumerate(questions):
        engine.handle(Submit(first + index, tokens, SamplingParams(max_tokens=fresh), source))
    decoding = 0
    before, steps = (1, 1) if setting.dry else (fresh // 2, 12)
    trace = trace_of(setting.device)
    began = ended = False
    pending = {first + index for index in range(len(questions))}
    while pending:
        if not began and decoding >= before:
            trace.start()
            began = True
        if not ended and decoding >= before + steps:
            trace.stop()
            ended = True
        for reply in engine.step():
            assert isinstance(reply, StepReport)
            assert reply.stats is not None
            decoding += reply.stats.batch_sequences == reply.stats.batch_tokens == len(questions)
            pending -= {event.sequence for event in reply.events if event.finish is not None}
    assert ended, "there were fewer steps than are to be traced"
    spent = "device_time" if setting.device.type == "cuda" else "cpu_time"
    events = [event for event in trace.events() if getattr(event, spent) > 0]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy, reached, gaps = 0.0, spans[0][0], []
    for start, end in spans:
        if start > reached:
            gaps.append(start - reached)
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    kernels = [(name[:60], launches, us) for name, launches, us in kernels_of(trace, setting.device, steps)]
    return {
        "busy": busy / (reached - spans[0][0]),
        "gaps_us": sorted(gaps, reverse=True)[:16],
        "step_us": (reached - spans[0][0]) / steps,
        "kernels": kernels[:14],
    }


def _swap_in(setting: Setting, model: LoadedModel) -> dict[str, float]:
    """Milliseconds to put a compiled prefix of 128 tokens from host memory into blocks."""
    length = 16 if setting.dry else 128
    backend = TritonBackend(model.kv_shape(64, 16))
    shape = (model.num_layers, 2, model.num_kv_heads, length, model.head_dim)
    kv = torch.randn(shape, dtype=model.dtype)
    if setting.device.type == "cuda":
        kv = kv.pin_memory()
    return {"install_ms": milliseconds(lambda: backend.install(range(length // 16), kv), setting.device)}
