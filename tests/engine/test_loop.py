"""The engine's loop in this process: rows of logits at any position, sequences that only score, prompts that repeat."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from server.core import FinishReason, SamplingParams
from server.engine.loading import assemble
from server.engine.loop import Engine
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


@pytest.mark.parametrize("attention", ["native", "cpu", "reference"])
@pytest.mark.parametrize("prompt_cache", [True, False])
def test_a_prompt_that_repeats_is_answered_alike_with_less_to_compute(attention: str, prompt_cache: bool) -> None:
    """The compiled decoder's logits are bitwise the same; torch's may differ by how the prompt was cut."""
    model = from_module(tiny_model("llama"), max_model_len=ROOMY.max_model_len)
    prompt = [1 + i * 7 % 250 for i in range(70)]
    sizes = replace(ROOMY, block_size=32, prompt_cache=prompt_cache)
    with ThreadPoolExecutor(1) as readers:
        engine = assemble(model, base_of(model), sizes, attention, readers)
        first, again, other = (ask(engine, number, prompt, salt) for number, salt in enumerate(("a", "a", "b")))
    assert again.tokens == other.tokens == first.tokens
    torch.testing.assert_close(again.rows, first.rows, atol=0 if attention == "native" else 1e-4, rtol=0)
    assert torch.equal(other.rows, first.rows)
    assert (first.computed, other.computed) == (81, 81)
    assert again.computed == (12 if prompt_cache else 81), "all but the first 69 tokens of the prompt"


@dataclass(frozen=True)
class Asked:
    """One sequence's answer: its tokens, the logits that each was drawn from, and how many tokens were computed."""

    tokens: list[int]
    rows: Tensor
    computed: int


def ask(engine: Engine, number: int, prompt: list[int], salt: str) -> Asked:
    tokens: list[int] = []
    rows: list[Tensor] = []
    computed = 0
    message = Submit(number, tuple(prompt), SamplingParams(max_tokens=12), salt=salt)
    engine.submit(message, on_row=lambda position, logits: rows.append(logits.clone()))
    while len(tokens) < 12:
        for report in engine.step():
            assert isinstance(report, StepReport)
            assert report.stats is not None
            tokens += [event.token for event in report.events]
            computed += report.stats.batch_tokens
    return Asked(tokens, torch.stack(rows), computed)
