"""What labels cost: a request with many of them over one with one, and over one that draws a single token."""

from __future__ import annotations

import http.client
import json
import random
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.bench import Bench
from benchmarks.results import Figure, Findings
from benchmarks.servers import HOST, Server

LIMIT = 1.5
"""Times that a request with 32 labels of one token may take of one with one."""

TRIALS = 20
WORDS = (64, 512)
"""Of a prompt; a token each, or nearly."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
_WORDS = ("the", "of", "water", "river", "under", "light", "seven", "often", "table", "because", "north", "little")
_SHORT = [f" {letter}" for letter in _LETTERS]
_LONG = [f" {letter} {_WORDS[i % len(_WORDS)]} {_WORDS[i // 3]}" for i, letter in enumerate(_LETTERS)]

REQUESTS: dict[str, dict[str, Any]] = {
    "one drawn token": {"max_tokens": 1},
    "1 label": {"labels": _SHORT[:1]},
    "32 labels of one token": {"labels": _SHORT},
    "32 labels of three tokens": {"labels": _LONG},
}


def run(bench: Bench) -> Findings:
    """Send one request after the other, each with a prompt of its own, every kind in turn."""
    server = bench.ours()
    draw = random.Random("labels")
    figures: list[Figure] = []
    for words in WORDS:
        bench.said(f"prompts of {words} words")
        times: dict[str, list[float]] = {name: [] for name in REQUESTS}
        with server.awake():
            for trial in range(-1, bench.options.of(TRIALS)):
                for name, fields in REQUESTS.items():
                    prompt = " ".join(draw.choices(_WORDS, k=words))
                    seconds = _ask(server, {"prompt": prompt, **fields})
                    if trial >= 0:  # the first round warms up
                        times[name].append(seconds * 1000)
        figures += _figures(words, {name: median(spent) for name, spent in times.items()})
    return Findings(figures=figures)


def _figures(words: int, spent: dict[str, float]) -> list[Figure]:
    drawn, one, many, long = (spent[name] for name in REQUESTS)
    note = f"({one:.0f} and {many:.0f} ms)"
    return [
        Figure(f"32 labels of one token over one label, prompts of {words} words", many / one, "", LIMIT, note),
        Figure(f"the same over one drawn token ({drawn:.0f} ms)", many / drawn, ""),
        Figure(f"32 labels of three tokens over one label ({long:.0f} ms)", long / one, ""),
    ]


def _ask(server: Server, body: dict[str, Any]) -> float:
    """Return the seconds that a whole reply took, its connection included."""
    began = perf_counter()
    connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
    connection.request("POST", server.path, json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    assert reply.status == 200, text[:300]
    return perf_counter() - began
