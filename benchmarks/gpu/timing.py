"""How long work takes on the device, and how long until it is done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], device: torch.device, *, repeats: int = 20, warm: int = 3) -> float:
    """Return the median milliseconds of `work` on the device, with nothing else waiting there."""
    for _ in range(warm):
        work()
    synchronize(device)
    if device.type != "cuda":
        return statistics.median(_seconds(work) for _ in range(min(repeats, 2))) * 1e3
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


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
