"""How long work takes on the device, and how long until it is done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], device: torch.device, *, repeats: int = 20, warm: int = 3) -> float:
    """Return the median milliseconds of `work` on the device, with nothing else waiting there."""
    if device.type != "cuda":
        return _seconds(work) * 1e3  # nobody looks at what an interpreter takes
    for _ in range(warm):
        work()
    synchronize(device)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def captured(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the work as one graph, so that no launch is timed; on a CPU as it is."""
    if device.type != "cuda":
        return work
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def trace_of(device: torch.device, *, launches: bool = False) -> Any:
    """Return a profiler of what the device does, with `launches` of who asks for it too; on a CPU of its operations."""
    from torch.profiler import ProfilerActivity, profile

    there = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    return profile(activities={there, ProfilerActivity.CPU} if launches else {there})


def kernels_of(trace: Any, device: torch.device, rounds: int) -> list[tuple[str, float, float]]:
    """Return the kernels that a trace of so many rounds holds, by the time that they take: name, launches and
    microseconds of a round."""
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = [
        (event.key, event.count / rounds, getattr(event, spent) / rounds)
        for event in trace.key_averages()
        if getattr(event, spent) > 0
    ]
    return sorted(rows, key=lambda row: -row[2])


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
