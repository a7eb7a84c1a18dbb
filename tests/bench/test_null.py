"""The null engine gives every sequence as many tokens as it asks for, one a step, and forgets those that end."""

from __future__ import annotations

import pytest

from benchmarks.null.engine import NullEngine
from server.core import BaseModel, EngineConfig, FinishReason, SamplingParams
from server.engine.messages import Abort, Forget, Submit

BASE = BaseModel(
    name="null",
    family="llama",
    digest="sha256:null",
    vocab_size=1002,
    hidden_size=32,
    num_layers=2,
    num_kv_heads=2,
    head_dim=8,
    context_length=512,
    eos_token_ids=(),
)


@pytest.fixture
def engine() -> NullEngine:
    config = EngineConfig(
        model_path="",
        base=BASE,
        dtype="bfloat16",
        device="cpu",
        attention="auto",
        kv_memory=4 * 2**20,
        prefix_memory=2 * 2**20,
        max_model_len=512,
        max_virtual_tokens=128,
        max_seqs=16,
        step_tokens=64,
        threads=1,
    )
    return NullEngine(config)


def submit(sequence: int, tokens: int) -> Submit:
    return Submit(sequence, (1, 2, 3), SamplingParams(max_tokens=tokens))


def test_a_sequence_gets_as_many_tokens_as_it_asks_for(engine: NullEngine) -> None:
    engine.take(submit(0, 3))
    reports = [engine.step() for _ in range(4)]
    assert [[event.finish for event in report.events] for report in reports] == [
        [None],
        [None],
        [FinishReason.LENGTH],
        [],
    ]
    assert [len(report.started) for report in reports] == [1, 0, 0, 0]
    assert all(event.token < BASE.vocab_size for report in reports for event in report.events)


def test_one_report_a_step_tells_of_every_sequence(engine: NullEngine) -> None:
    engine.take(submit(0, 2))
    engine.take(submit(1, 1))
    report = engine.step()
    assert [event.sequence for event in report.events] == [0, 1]
    assert report.stats is not None
    assert (report.stats.batch_sequences, report.stats.running) == (2, 1)


def test_an_aborted_sequence_gets_no_more(engine: NullEngine) -> None:
    engine.take(submit(0, 100))
    engine.step()
    engine.take(Abort(0))
    assert engine.step().events == ()
    assert not engine.waiting.is_set(), "an idle engine steps on"


def test_what_needs_a_model_is_refused(engine: NullEngine) -> None:
    with pytest.raises(ValueError, match="Forget"):
        engine.take(Forget("sha256:adapter"))
