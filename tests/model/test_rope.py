"""Rotary frequencies that transformers takes from the longest row of a batch are pinned to one length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine.model.attention.select import create_backend
from server.engine.model.guard import check_model
from server.engine.model.load import from_module
from server.engine.model.runner import Runner
from server.engine.scheduler.plan import Span
from tests.tiny_models import tiny_model

TRAINED = 64
SERVED_LEN = 200

DYNAMIC: dict[str, Any] = {
    "max_position_embeddings": TRAINED,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
}
LONG: dict[str, Any] = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": TRAINED,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": TRAINED,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
}
PER_LAYER: dict[str, Any] = {
    "max_position_embeddings": TRAINED,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 50000.0},
    },
}
MODELS = [("llama", DYNAMIC), ("phi3", LONG), ("gemma3", PER_LAYER)]
IDS = [family for family, _ in MODELS]

both = pytest.mark.parametrize(("family", "overrides"), MODELS, ids=IDS)


def make(family: str, overrides: dict[str, Any], max_model_len: int = SERVED_LEN) -> Runner:
    model = from_module(tiny_model(family, **overrides), max_model_len=max_model_len)
    return Runner(model, create_backend("cpu", model.kv_shape(num_blocks=16, block_size=64)))


def tokens(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@torch.inference_mode()
def alone(module: PreTrainedModel, ids: tuple[int, ...]) -> Tensor:
    logits: Tensor = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def span(sequence: int, ids: tuple[int, ...]) -> Span:
    blocks = tuple(range(sequence * 4, sequence * 4 + 4))
    return Span(sequence, 0, ids, blocks, rows=tuple(range(len(ids))))


@both
def test_the_longest_row_equals_transformers(family: str, overrides: dict[str, Any]) -> None:
    ids = tokens(SERVED_LEN)
    found, _ = make(family, overrides).forward([span(0, ids)])
    torch.testing.assert_close(found, alone(tiny_model(family, **overrides), ids), atol=2e-5, rtol=0)


@both
def test_short_lengths_equal_transformers_when_served_short(family: str, overrides: dict[str, Any]) -> None:
    ids = tokens(TRAINED)
    found, _ = make(family, overrides, max_model_len=TRAINED).forward([span(0, ids)])
    torch.testing.assert_close(found, alone(tiny_model(family, **overrides), ids), atol=2e-5, rtol=0)


@both
def test_another_row_changes_nothing(family: str, overrides: dict[str, Any]) -> None:
    runner = make(family, overrides)
    short, long = span(0, tokens(9)), span(1, tokens(SERVED_LEN, seed=1))
    before, _ = runner.forward([short])
    beside, _ = runner.forward([long, short])
    after, _ = runner.forward([short])
    torch.testing.assert_close(beside[SERVED_LEN:], before, atol=5e-6, rtol=0)
    assert torch.equal(before, after)


@both
def test_without_pinning_another_row_would(family: str, overrides: dict[str, Any]) -> None:
    """What the pinning is for: the same text, before and after transformers has seen a long row."""
    module = tiny_model(family, **overrides)
    ids = tokens(9)
    positions = torch.arange(9)[None]
    with torch.inference_mode():
        before = module(input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False).logits[0]
        rows = torch.tensor([ids, ids])
        positions = torch.stack([positions[0], positions[0] + SERVED_LEN - 9])
        beside = module(input_ids=rows, position_ids=positions, use_cache=False).logits[0]
    assert (before - beside).abs().max() > 1e-4


@both
def test_the_start_up_check_passes(family: str, overrides: dict[str, Any]) -> None:
    runner = make(family, overrides)
    check_model(runner.model, runner.backend)
