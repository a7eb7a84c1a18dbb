"""Requests that arrive when they like: latency against offered load, up to where a server no longer keeps up."""

from __future__ import annotations

import random

from benchmarks.asks import NEW_TOKENS, Ask
from benchmarks.bench import PROMPT, Bench
from benchmarks.results import Findings, Point, turn_of
from benchmarks.servers import Server

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Offered loads, as shares of what our server finishes when 64 clients never pause."""

SECONDS, QUICK_SECONDS = 8.0, 3.0
KEPT_UP = 0.85
"""A server that finishes less than this share of what is offered is saturated, and is offered no more."""


def run(bench: Bench) -> Findings:
    """Offer both servers the same arrivals of the same requests."""
    seconds = QUICK_SECONDS if bench.options.quick else SECONDS
    ours, vllm = bench.ours(), bench.vllm()
    capacity = bench.measure(ours, [Ask(p) for p in bench.prompts(128, PROMPT, "capacity")], 64).rate / NEW_TOKENS
    lone = [Ask(prompt) for prompt in bench.prompts(1, PROMPT, "alone")]
    alone = {server.label: bench.measure(server, lone, 1).seconds for server in (ours, vllm)}
    found = Findings()
    saturated: set[str] = set()
    for number, share in enumerate(SHARES):
        times = poisson(capacity * share, seconds, number)
        asks = [Ask(prompt) for prompt in bench.prompts(len(times), PROMPT, "open", number)]
        for server in (ours, vllm):
            if server.label in saturated:
                continue
            point = _measure(bench, server, capacity * share, times, asks, alone[server.label])
            found.points.append(point)
            bench.said(f"{server.label}: {point.offered:.1f} offered, {point.finished:.1f} finished a second")
            if point.finished < KEPT_UP * len(times) / seconds:
                saturated.add(server.label)
    return found


def poisson(rate: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Return the times of arrivals at `rate` a second within `seconds`, the first one at 0."""
    draw = random.Random(seed)
    times = [0.0]
    while (following := times[-1] + draw.expovariate(rate)) < seconds:
        times.append(following)
    return tuple(times)


def _measure(
    bench: Bench, server: Server, offered: float, times: tuple[float, ...], asks: list[Ask], alone: float
) -> Point:
    """`finished` counts requests over the time from the first arrival to the last answer, less what one alone takes."""
    warm = [Ask(prompt, 8) for prompt in bench.prompts(8, PROMPT, "open warm", offered)]
    with server.awake():
        outcome = server.send(asks, bench.folder, times=times, warm=warm)
    turn = turn_of(outcome)
    finished = len(outcome.lasts) / max(outcome.wall - alone, times[-1], 1e-9)
    return Point(server.label, offered, finished, turn)
