"""The start-up check passes every served family and catches planted errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from server.engine.model.attention.base import Row
from server.engine.model.attention.cpu import CpuBackend
from server.engine.model.attention.reference import ReferenceBackend
from server.engine.model.attention.select import create_backend
from server.engine.model.guard import check_model
from server.engine.model.load import LoadedModel, from_module
from server.engine.model.runner import Runner
from server.engine.model.support import UnsupportedModel
from server.engine.scheduler.plan import Span
from tests.tiny_models import REFUSED, SERVED, tiny_model

OWN_ATTENTION = "does not go through transformers' attention interface"
REASONS = {
    "bloom": OWN_ATTENTION,
    "falcon": OWN_ATTENTION,
    "mpt": OWN_ATTENTION,
    "gptj": OWN_ATTENTION,
    "gpt_neo": OWN_ATTENTION,
    "codegen": OWN_ATTENTION,
    "xglm": OWN_ATTENTION,
    "mamba": "state-space",
    "lfm2": "convolution layers",
    "bert": "not causal",
    "deepseek_v3": "MLA",
    "t5": "encoder-decoder",
}


def loaded(family: str, max_model_len: int = 128, **overrides: Any) -> LoadedModel:
    return from_module(tiny_model(family, **overrides), max_model_len=max_model_len)


def test_at_least_twenty_families_are_served() -> None:
    assert len({config for config, _ in SERVED.values()}) >= 20
    assert REASONS.keys() == REFUSED.keys()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", SERVED)
def test_served_families_pass(family: str, backend: str) -> None:
    model = loaded(family)
    calibration = check_model(model, create_backend(backend, model.kv_shape(num_blocks=16, block_size=16)))
    assert calibration.kv.shape == (model.num_layers, 2)
    assert calibration.embedding > 0
    assert bool((calibration.kv > 0).all())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_lower_precision_passes(family: str) -> None:
    model = loaded(family, dtype=torch.bfloat16)
    check_model(model, CpuBackend(model.kv_shape(num_blocks=8, block_size=64)))


@pytest.mark.parametrize("family", REFUSED)
def test_other_families_are_refused_by_name_with_the_reason(family: str) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        loaded(family)
    assert f"the family '{family}'" in str(refusal.value)
    assert REASONS[family] in str(refusal.value)


class _ForgetsWindow(CpuBackend):
    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return super().attend(module, query, key, value, mask, **(kwargs | {"sliding_window": None}))


class _ForgetsSoftcap(CpuBackend):
    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return super().attend(module, query, key, value, mask, **(kwargs | {"softcap": None}))


class _ForgetsPrefix(CpuBackend):
    def begin(self, rows: Sequence[Row]) -> None:
        super().begin([replace(row, prefix_len=0, prefix_blocks=()) for row in rows])


class _LosesAPrefixToken(CpuBackend):
    def begin(self, rows: Sequence[Row]) -> None:
        super().begin([replace(row, prefix_len=max(0, row.prefix_len - 1)) for row in rows])


class _ForgetsEarlierChunks(ReferenceBackend):
    def begin(self, rows: Sequence[Row]) -> None:
        super().begin([replace(row, start=0) for row in rows])


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        ("mistral", _ForgetsWindow),
        ("gemma3", _ForgetsWindow),
        ("gemma2", _ForgetsSoftcap),
        ("llama", _ForgetsPrefix),
        ("gpt2", _LosesAPrefixToken),
        ("opt", _ForgetsEarlierChunks),
    ],
)
def test_planted_errors_are_caught(family: str, backend: type[CpuBackend]) -> None:
    overrides = {"attn_logit_softcapping": 0.02} if backend is _ForgetsSoftcap else {}
    model = loaded(family, **overrides)
    with pytest.raises(UnsupportedModel, match=f"{family}.*logits differ from the model's own"):
        check_model(model, backend(model.kv_shape(num_blocks=16, block_size=16)))


def test_a_window_far_longer_than_the_check_is_exercised() -> None:
    model = loaded("mistral", sliding_window=400, max_model_len=500)
    with pytest.raises(UnsupportedModel, match="logits differ"):
        check_model(model, _ForgetsWindow(model.kv_shape(num_blocks=16, block_size=16)))
    check_model(model, CpuBackend(model.kv_shape(num_blocks=16, block_size=16)))


def test_a_layer_that_goes_round_the_hook_later_is_caught() -> None:
    model = loaded("llama")
    last = model.module.model.layers[-1].self_attn
    last.config = type(last.config)(**last.config.to_dict())
    last.config._attn_implementation = "eager"
    with pytest.raises(UnsupportedModel, match="called the attention interface 1 times"):
        check_model(model, CpuBackend(model.kv_shape(num_blocks=16, block_size=16)))


def test_everything_is_as_before_afterwards() -> None:
    model = loaded("gemma3", sliding_window=40)
    backend = CpuBackend(model.kv_shape(num_blocks=16, block_size=16))
    runner = Runner(model, backend)
    span = Span(0, 0, tuple(range(5, 60)), (0, 1, 2, 3), samples=True)
    before, _ = runner.forward([span])
    backend.zero(range(16))
    check_model(model, backend)
    assert model.module.config.sliding_window == 40
    after, _ = runner.forward([span])
    assert torch.equal(before, after)
    probe = Span(1, 0, (7,), (9,), samples=True)
    alone, _ = runner.forward([probe])
    backend.zero((9,))
    again, _ = runner.forward([probe])
    assert torch.equal(alone, again)


def test_the_memory_is_left_cleared() -> None:
    model = loaded("llama")
    backend = ReferenceBackend(model.kv_shape(num_blocks=16, block_size=16))
    check_model(model, backend)
    # Every key of sixteen blocks as a prefix: cleared values leave an output of the one new token's share only.
    row = Row(offset=0, count=1, start=0, blocks=(15,), prefix_len=15 * 16, prefix_blocks=tuple(range(15)))
    layer = nn.Module()
    layer.layer_idx = 0  # type: ignore[assignment]
    backend.begin([row])
    nothing = torch.zeros(1, 2, 1, 8)
    output, _ = backend.attend(layer, torch.zeros(1, 4, 1, 8), nothing, nothing + 241, None)
    torch.testing.assert_close(output, torch.ones_like(output))


def test_too_few_blocks_to_check_say_so() -> None:
    model = loaded("llama")
    with pytest.raises(ValueError, match="has 2 blocks, the start-up check needs"):
        check_model(model, CpuBackend(model.kv_shape(num_blocks=2, block_size=16)))


@pytest.mark.parametrize("max_model_len", [4, 30])
def test_short_contexts_can_be_checked(max_model_len: int) -> None:
    model = loaded("gpt2", max_model_len=max_model_len)
    check_model(model, CpuBackend(model.kv_shape(num_blocks=8, block_size=64)))
