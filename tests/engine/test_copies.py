"""Prompts that part inside a block: what is copied from another sequence's block answers as what is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.core import AdapterKind, AdapterSource, SamplingParams
from server.engine.loading import Sizes
from server.engine.messages import Submit
from tests.engine.asking import Told, ask_all
from tests.engine.test_scoring import engine_of
from tests.parity.oracle import save_adapter
from tests.parity.test_parity import BACKENDS, prompt_of
from tests.tiny_models import VOCAB_SIZE, tiny_model

PARAMS = SamplingParams(max_tokens=6, logprobs=3)
ROOM = Sizes(num_blocks=20, block_size=32, prefix_blocks=4, max_seqs=4, step_tokens=64, max_model_len=160)
FULL = Sizes(num_blocks=5, block_size=32, prefix_blocks=1, max_seqs=4, step_tokens=64, max_model_len=128)
"""What a prefix of two tokens and one sequence of the greatest length take."""

KINDS = [None, AdapterKind.PROMPT_TUNING, AdapterKind.PREFIX_TUNING]


def answers(
    sizes: Sizes, attention: str, prompts: list[tuple[int, ...]], source: AdapterSource | None, salt: str | None
) -> tuple[list[Told], list[int]]:
    """Ask one after the other; return what was told, and how many tokens of each needed no computing."""
    with engine_of(sizes, attention) as engine:
        told = [ask_all(engine, [Submit(i, p, PARAMS, source, salt)])[i] for i, p in enumerate(prompts)]
    return told, [one.started.cached_tokens if one.started else -1 for one in told]


def require_alike(found: list[Told], expected: list[Told], attention: str) -> None:
    for one, other in zip(found, expected, strict=True):
        if attention == "native":
            assert one.events == other.events, "the bits are the same"
            continue
        assert [event.token for event in one.events] == [event.token for event in other.events]
        logprobs = [event.logprob for event in other.events]
        assert [event.logprob for event in one.events] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_copied_starts_answer_as_computed_ones(tmp_path: Path, attention: str, kind: AdapterKind | None) -> None:
    source = None if kind is None else save_adapter(tiny_model("llama"), kind, tmp_path / "a", 5).source(VOCAB_SIZE)
    stem = tuple(prompt_of(90, seed=1))
    prompts = [stem[:50], (*stem[:49], 7, 8, 9), stem, (*stem[:75], 11), (*stem[:20], 12, 13), stem[:50]]
    found, cached = answers(ROOM, attention, prompts, source, "a")
    expected, nothing = answers(ROOM, attention, prompts, source, None)
    assert cached == [0, 49, 50, 75, 20, 49]
    assert nothing == [0] * len(prompts)
    require_alike(found, expected, attention)


@pytest.mark.parametrize("attention", BACKENDS)
def test_what_is_copied_from_may_be_cleared_in_the_same_step(tmp_path: Path, attention: str) -> None:
    source = save_adapter(tiny_model("llama"), AdapterKind.PROMPT_TUNING, tmp_path / "a", 2).source(VOCAB_SIZE)
    stem = tuple(prompt_of(120, seed=2))
    prompts = [stem, (*stem[:20], *prompt_of(100, seed=3))]
    found, cached = answers(FULL, attention, prompts, source, "a")
    assert cached == [0, 20]
    require_alike(found, answers(FULL, attention, prompts, source, None)[0], attention)
