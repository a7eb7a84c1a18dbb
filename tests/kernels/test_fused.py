"""The fused decoder equals the model that it was taken from, and a planted error keeps it out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks.gpu.interpreter import hasten
from server.core import PrefixKey
from server.engine.model.attention.hook import attach, detach
from server.engine.model.attention.reference import ReferenceBackend
from server.engine.model.attention.triton import TritonBackend
from server.engine.model.fused.decoder import FusedDecoder, NotFused
from server.engine.model.guard import check_forward
from server.engine.model.load import LoadedModel, from_module
from server.engine.model.runner import Runner
from server.engine.model.support import UnsupportedModel
from server.engine.scheduler.plan import Prefix, Span
from tests.tiny_models import tiny_model

hasten()

FAMILIES = ["llama", "llama_gqa3", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "seed_oss", "ministral", "cwm"]


def made(family: str, max_model_len: int = 96, **sizes: int) -> tuple[LoadedModel, TritonBackend]:
    model = from_module(tiny_model(family, **sizes), max_model_len=max_model_len)
    backend = TritonBackend(model.kv_shape(num_blocks=12, block_size=16))
    attach(model.module, backend)
    return model, backend


BEHIND = Prefix(PrefixKey("", "a"), 5, (4,))
STEPS = [
    [Span(0, 0, tuple(range(3, 8)), (4,))],
    [Span(1, 0, (5, 6), (7,), BEHIND, rows=(0, 1)), Span(2, 0, tuple(range(40, 46)), (1,), rows=(3, 5))],
    [Span(1, 2, (8,), (7,), BEHIND, samples=True), Span(2, 6, (9,), (1,), samples=True)],
]


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_equals_plain(family: str) -> None:
    model, backend = made(family)
    plain = Runner(model, ReferenceBackend(backend.shape))
    expected = [plain.forward(step)[0] for step in STEPS]
    attach(model.module, backend)
    fused = Runner(model, backend, forward=FusedDecoder(model, backend))
    for step, logits in zip(STEPS, expected, strict=True):
        found, _ = fused.forward(step)
        spread = float(logits.std()) if len(logits) else 1.0
        torch.testing.assert_close(found, logits, atol=1e-4 * max(1.0, spread), rtol=0)


def test_joined_weights_are_held_once() -> None:
    model, backend = made("llama")
    FusedDecoder(model, backend)
    layer = model.module.model.layers[0]
    query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
    assert query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()


class Scaled(nn.Module):
    """A module of the same names that computes a little more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self._inner = inner.weight, inner.variance_epsilon, inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._inner(hidden)
        return found * 1.01


def scaled_norm(layer: nn.Module) -> None:
    layer.post_attention_layernorm = Scaled(layer.post_attention_layernorm)


def scaled_attention(layer: nn.Module) -> None:
    read = layer.self_attn.forward
    layer.self_attn.forward = lambda *args, **kwargs: (read(*args, **kwargs)[0] * 1.02, None)


def other_activation(layer: nn.Module) -> None:
    layer.mlp.act_fn = nn.GELU()


def other_rotation(layer: nn.Module) -> None:
    read = layer.self_attn.forward

    def turned(*args: object, position_embeddings: tuple[torch.Tensor, torch.Tensor], **kwargs: object) -> object:
        cosines, sines = position_embeddings
        return read(*args, position_embeddings=(cosines, -sines), **kwargs)

    layer.self_attn.forward = turned


def scaled_product(name: str) -> Callable[[nn.Module], None]:
    """Let one product of the original give more than its weights say, which are what is taken."""

    def plant(layer: nn.Module) -> None:
        layer.get_submodule(name).register_forward_hook(lambda _, __, found: found * 1.03)

    return plant


PLANTS = {
    "norm": scaled_norm,
    "attention": scaled_attention,
    "activation": other_activation,
    "rotation": other_rotation,
    **{name: scaled_product(name) for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    **{name: scaled_product(name) for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")},
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
def test_a_layer_that_computes_something_else_is_refused(plant: Callable[[nn.Module], None]) -> None:
    model, backend = made("llama")
    plant(model.module.model.layers[1])
    with pytest.raises(NotFused, match="layer 1"):
        FusedDecoder(model, backend)


def test_what_comes_after_the_layers_is_compared_too() -> None:
    model, backend = made("llama", max_model_len=24, num_hidden_layers=1)
    model.module.model.norm = Scaled(model.module.model.norm)
    with pytest.raises(UnsupportedModel, match="differ"):
        check_forward(model, backend, FusedDecoder(model, backend))


def test_a_family_with_other_layers_is_refused() -> None:
    model, backend = made("gpt2")
    with pytest.raises(NotFused, match="gpt2"):
        FusedDecoder(model, backend)
    detach(model.module, backend)
