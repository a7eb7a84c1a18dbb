"""The engine's loop in this process: rows of logits at any position, and sequences that only score."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from server.core import FinishReason, SamplingParams
from server.engine.loading import assemble
from server.engine.messages import StepReport, Submit
from server.engine.model.load import from_module
from tests.parity.bench import base_of
from tests.parity.oracle import ask_plain
from tests.parity.test_parity import ROOMY
from tests.tiny_models import tiny_model

PROMPT = [5, 17, 200, 42, 8, 99, 120]


@pytest.mark.parametrize("wanted", [{0}, {2, 5}, set(range(len(PROMPT)))])
def test_a_sequence_may_be_scored_without_drawing(wanted: set[int]) -> None:
    model = from_module(tiny_model("llama"), max_model_len=ROOMY.max_model_len)
    rows: dict[int, Tensor] = {}
    with ThreadPoolExecutor(1) as readers:
        engine = assemble(model, base_of(model), ROOMY, "cpu", readers)
        engine.submit(
            Submit(1, tuple(PROMPT), SamplingParams(max_tokens=0)),
            rows=frozenset(wanted),
            on_row=lambda position, logits: rows.__setitem__(position, logits.clone()),
        )
        replies = engine.step()
    assert set(rows) == wanted
    expected = ask_plain(tiny_model("llama"), PROMPT).logits
    for position, logits in rows.items():
        torch.testing.assert_close(logits, expected[position], atol=1e-4, rtol=0)
    report = replies[-1]
    assert isinstance(report, StepReport)
    assert [event.finish for event in report.events] == [FinishReason.LENGTH]
    assert engine.waits
