"""Steps of fixed sizes on static buffers: what is captured when, and that a replay computes what is asked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.model.attention.base import Row
from server.engine.model.attention.buffers import BatchSize
from server.engine.model.attention.hook import attach
from server.engine.model.attention.reference import ReferenceBackend
from server.engine.model.attention.triton import TritonBackend
from server.engine.model.forward import PlainForward
from server.engine.model.graphs import CARRIED, DecodeGraphs, sizes_up_to
from server.engine.model.load import from_module
from tests.tiny_models import tiny_model

ROWS, TRASH = 11, 79


def captured_by(graphs: DecodeGraphs, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Let a capture be the captured function itself; return the list of all."""
    captures: list[Callable[[], None]] = []

    def capture(step: Callable[[], None]) -> Any:
        captures.append(step)
        return SimpleNamespace(replay=step)

    monkeypatch.setattr(graphs, "_captures", True)
    monkeypatch.setattr(graphs, "_capture", capture)
    return captures


def test_a_request_meets_no_size_or_context_that_was_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_module(tiny_model("llama"), max_model_len=1200)
    backend = TritonBackend(model.kv_shape(TRASH + 1, 16), BatchSize(ROWS, 64, 2 * ROWS * 80))
    sizes: list[int] = []

    def forward(embeddings: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        sizes.append(len(embeddings))
        return torch.zeros(len(keep), model.vocab_size)

    graphs = DecodeGraphs(model, backend, forward, trash=TRASH, max_rows=ROWS)
    captures = captured_by(graphs, monkeypatch)
    graphs.prepare()
    assert len(captures) == 4 * len(sizes_up_to(ROWS))
    assert sizes[0] == ROWS  # the largest first

    blocks = tuple(range(70))
    for count in range(1, ROWS + 1):
        for context in (1, 255, 256, 257, 700, 1024):
            graphs.run([Row(n, 1, context - 1, blocks) for n in range(count)], [5] * count)
        graphs.run([Row(n, 1, 40, blocks, 300, tuple(range(20))) for n in range(count)], [5] * count)
    assert len(captures) == 4 * len(sizes_up_to(ROWS))
    for _ in range(2):
        graphs.run([Row(0, 1, 1100, blocks)], [5])
    assert len(captures) == 4 * len(sizes_up_to(ROWS)) + 1


@pytest.mark.parametrize("prepared", [True, False])
def test_replays_compute_what_stands_in_the_buffers(prepared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_module(tiny_model("llama"), max_model_len=64)
    backend = ReferenceBackend(model.kv_shape(TRASH + 1, 16))
    attach(model.module, backend)
    graphs = DecodeGraphs(model, backend, PlainForward(model), trash=TRASH, max_rows=ROWS)
    captures = captured_by(graphs, monkeypatch)
    if prepared:
        graphs.prepare()
        assert not bool(backend._memory[:, :, :TRASH].any())
    texts = torch.randint(3, model.vocab_size, (5, 4), generator=torch.Generator().manual_seed(1)).tolist()
    drawn: list[list[int]] = [[] for _ in texts]
    for step in range(6):
        rows = [Row(n, 1, step, (n,)) for n in range(len(texts))]
        known = step < 4
        # Beyond their text, tokens are those that the step before left on the device.
        ids = [text[step] if known else CARRIED for text in texts]
        found = graphs.run(rows, ids, range(len(texts)), range(len(texts)))
        for number, token in enumerate(found.tokens.tolist()):
            drawn[number].append(token)
    assert len(captures) == (len(sizes_up_to(ROWS)) if prepared else 1)
    alone = tiny_model("llama")
    for text, tokens in zip(texts, drawn, strict=True):
        whole = [*text, *tokens[3:5]]
        with torch.inference_mode():
            expected = alone(torch.tensor([whole])).logits[0].argmax(-1).tolist()
        assert tokens == expected
