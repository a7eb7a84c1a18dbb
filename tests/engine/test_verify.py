"""What is served is held against the base model alone: every kind, a fault that is planted, and files that changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from server.core import AdapterKind, AdapterSource, Parity, SamplingParams
from server.engine.loading import assemble
from server.engine.loop import Engine
from server.engine.messages import FromEngine, StepReport, Submit, Verify, VerifyResult
from server.engine.model.attention.base import Row
from server.engine.model.load import from_module
from tests.parity.bench import base_of
from tests.parity.oracle import save_adapter
from tests.parity.test_parity import LENGTHS, NATIVE, ROOMY
from tests.tiny_models import VOCAB_SIZE, tiny_model

PROMPT = (5, 17, 200, 42, 8, 99, 120)


@contextmanager
def engine_of(family: str, attention: str, dtype: torch.dtype = torch.float32) -> Iterator[Engine]:
    model = from_module(tiny_model(family).to(dtype), max_model_len=ROOMY.max_model_len)
    with ThreadPoolExecutor(1) as readers:
        yield assemble(model, base_of(model), NATIVE[ROOMY] if attention == "native" else ROOMY, attention, readers)


def replies(engine: Engine, *messages: Submit | Verify) -> Iterator[FromEngine]:
    """Everything that the engine tells, step by step, for ever."""
    for message in messages:
        engine.handle(message)
    while True:
        for message in engine.drain(block=engine.waits):
            assert message is not None
            engine.handle(message)
        yield from engine.step()


def verify(engine: Engine, source: AdapterSource, tokens: tuple[int, ...] = PROMPT, *beside: Submit) -> VerifyResult:
    """The verdict; nothing is told of the verification's own tokens."""
    for reply in replies(engine, *beside, Verify(7, tokens, 4, source)):
        if isinstance(reply, VerifyResult):
            return reply
        assert isinstance(reply, StepReport)
        assert all(event.sequence != 7 for event in reply.events)
        assert all(started.sequence != 7 for started in reply.started)
    raise AssertionError("unreachable: replies have no end")


def parity_of(result: VerifyResult) -> Parity:
    assert result.parity is not None, result.message
    return result.parity


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("attention", ["native", "cpu"])
def test_every_kind_holds(tmp_path: Path, family: str, attention: str) -> None:
    with engine_of(family, attention) as engine:
        for kind, length in LENGTHS.items():
            source = save_adapter(tiny_model(family), kind, tmp_path / kind, length).source(VOCAB_SIZE)
            parity = parity_of(verify(engine, source))
            assert (parity.positions, parity.same_tokens) == (len(PROMPT) + 3, len(PROMPT) + 3)
            assert parity.holds, (kind, parity)


def test_virtual_tokens_in_the_middle_hold_beside_others(tmp_path: Path) -> None:
    saved = save_adapter(tiny_model("llama"), AdapterKind.PROMPT_TUNING, tmp_path / "a", 5)
    source = saved.source(VOCAB_SIZE, prefix_ids=(3, 4, VOCAB_SIZE), needs_table=True)
    tokens = (5, 6, *range(VOCAB_SIZE + 1, VOCAB_SIZE + 5), 9)
    with engine_of("llama", "native") as engine:
        beside = Submit(1, PROMPT, SamplingParams(max_tokens=20), saved.source(VOCAB_SIZE))
        parity = parity_of(verify(engine, source, tokens, beside))
    assert parity.holds
    assert parity.positions == len(tokens) + 3


def test_bfloat16_is_held_to_its_own_tolerance(tmp_path: Path) -> None:
    source = save_adapter(tiny_model("llama"), AdapterKind.PREFIX_TUNING, tmp_path / "a", 20).source(VOCAB_SIZE)
    with engine_of("llama", "cpu", torch.bfloat16) as engine:
        parity = parity_of(verify(engine, source))
    assert parity.holds
    assert parity.largest > 1e-4, "bfloat16 rounds"


@pytest.mark.parametrize("kind", [AdapterKind.P_TUNING, AdapterKind.PREFIX_TUNING])
def test_a_prefix_that_is_wrong_in_memory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: AdapterKind
) -> None:
    """The block of its first tokens is cleared behind the engine's back."""
    source = save_adapter(tiny_model("llama"), kind, tmp_path / "a", 20).source(VOCAB_SIZE)
    with engine_of("llama", "native") as engine:
        backend = engine._runner.backend
        begin, seen = backend.begin, set[int]()

        def watched(rows: Sequence[Row]) -> None:
            seen.update(block for row in rows for block in row.prefix_blocks)
            begin(rows)

        monkeypatch.setattr(backend, "begin", watched)
        assert parity_of(verify(engine, source)).holds
        assert len(seen) == 1
        backend.zero(list(seen))
        parity = parity_of(verify(engine, source))
    assert not parity.holds
    assert parity.largest > 100 * parity.allowed


def test_only_the_last_positions_of_a_long_prompt_are_compared(tmp_path: Path) -> None:
    source = save_adapter(tiny_model("llama"), AdapterKind.CPT, tmp_path / "a", 4).source(VOCAB_SIZE)
    with engine_of("llama", "native") as engine:
        parity = parity_of(verify(engine, source, tuple(1 + i * 7 % 250 for i in range(100))))
    assert parity.holds
    assert parity.positions == 64 + 3


def test_what_cannot_be_verified_is_said(tmp_path: Path) -> None:
    saved = save_adapter(tiny_model("llama"), AdapterKind.CPT, tmp_path / "a", 4)
    source = saved.source(VOCAB_SIZE)
    with engine_of("llama", "native") as engine:
        long = verify(engine, source, (5,) * 160)
        assert (long.parity, long.code) == (None, "context_length_exceeded")
        (saved.folder / "adapter_model.safetensors").write_bytes(b"other")
        changed = verify(engine, source)
        assert (changed.parity, changed.code) == (None, "adapter_invalid")
        assert "sha256" in changed.message
