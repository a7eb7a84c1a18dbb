"""A Llama-like decoder in ten launches a layer, over the weights of the model that transformers loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.engine.model.attention.base import Row
from server.engine.model.attention.triton import BLOCK_SIZE, TritonBackend
from server.engine.model.load import LoadedModel

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest difference of a layer's output from the original's, over the root mean square of what the layer adds."""

TEST_TOKENS = 5
"""Of a layer's self-test: a prefilling row, whose last token is computed once more as a single one."""


class NotFused(Exception):
    """The model stays as it is; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer's weights; `qkv` [(heads + 2 * kv heads) * head_dim, hidden], `gate_up` [2 * ffn, hidden]."""

    index: int
    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    head_epsilon: float
    scaling: float
    window: int | None
    turns: bool  # whether queries and keys are turned by their position
    out: Tensor
    out_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    epsilon: float


class FusedDecoder:
    """A `Forward`: norm with residual, one product for queries, keys and values, rotation with the KV write, attention
    in two launches, and so on. Weights that are multiplied together lie together; the original modules keep views.
    """

    def __init__(self, model: LoadedModel, backend: TritonBackend) -> None:
        """Take the model's layers one by one, each after a test against the original. Raises NotFused.

        The backend must be attached to the model; the test writes its first blocks and clears them.
        """
        # Imported here: only who runs this needs Triton.
        from server.engine.model.kernels import layers as kernels

        _require_plain(model)
        self._kernels = kernels
        self._backend = backend
        self._heads, self._kv_heads, self._dim = model.num_heads, model.num_kv_heads, model.head_dim
        self._vocab_size = model.vocab_size
        self._cosines, self._sines = _rotary_table(model)
        body: Any = model.module.model
        self._norm, self._epsilon = body.norm.weight, float(body.norm.variance_epsilon)
        self._head: Any = model.module.lm_head
        self._layers: list[_Layer] = []
        for index, (layer, window) in enumerate(zip(body.layers, model.windows, strict=True)):
            try:
                taken = _take(index, layer, window)
            except AttributeError as error:
                raise NotFused(f"layers of {model.family} are not of the kind that can be fused: {error}") from error
            self._test(model, layer, taken)
            _share(layer, taken)
            self._layers.append(taken)

    @torch.inference_mode()
    def __call__(self, embeddings: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """See `Forward`."""
        hidden, residual = embeddings, None
        for layer in self._layers:
            hidden, residual = self._layer(layer, hidden, residual, positions)
        if not len(keep):
            return embeddings.new_zeros((0, self._vocab_size))
        assert residual is not None, "a model has layers"
        if len(keep) != len(hidden):
            hidden, residual = hidden.index_select(0, keep), residual.index_select(0, keep)
        normed, _ = self._add_norm(hidden, residual, self._norm, self._epsilon)
        return functional.linear(normed, self._head.weight, self._head.bias)

    def _layer(
        self, layer: _Layer, hidden: Tensor, residual: Tensor | None, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the layer's last product gives [tokens, hidden], and the residual that it is to be added to."""
        normed, residual = self._add_norm(hidden, residual, layer.input_norm, layer.epsilon)
        query = self._rotate_write(layer, functional.linear(normed, layer.qkv, layer.qkv_bias), positions)
        mixed = self._backend.read(layer.index, query, scaling=layer.scaling, window=layer.window)
        hidden = functional.linear(mixed.flatten(1), layer.out, layer.out_bias)
        normed, residual = self._add_norm(hidden, residual, layer.post_norm, layer.epsilon)
        active = self._swiglu(functional.linear(normed, layer.gate_up, layer.gate_up_bias))
        return functional.linear(active, layer.down, layer.down_bias), residual

    def _add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        tokens, width = hidden.shape
        hidden = hidden.contiguous()
        normed = torch.empty_like(hidden)
        total = hidden if residual is None else torch.empty_like(hidden)
        padded = _power(width)
        self._kernels.add_norm_kernel[(tokens,)](
            hidden,
            hidden if residual is None else residual,
            weight,
            normed,
            total,
            epsilon,
            WIDTH=width,
            WIDTH_PADDED=padded,
            ADDS=residual is not None,
            num_warps=min(16, max(1, padded // 512)),
        )
        return normed, total

    def _rotate_write(self, layer: _Layer, projected: Tensor, positions: Tensor) -> Tensor:
        """Put keys and values into their slots; return the queries [tokens, heads, head_dim]."""
        tokens, half = len(projected), self._dim // 2
        query = torch.empty((tokens, self._heads, self._dim), dtype=projected.dtype, device=projected.device)
        memory = self._backend.memory[layer.index]
        normed = layer.query_norm is not None
        self._kernels.rotate_write_kernel[(tokens, self._heads + 2 * self._kv_heads)](
            projected,
            self._cosines,
            self._sines,
            positions,
            self._backend.buffers.slots,
            layer.query_norm if normed else projected,
            layer.key_norm if normed else projected,
            query,
            memory[0],
            memory[1],
            layer.head_epsilon,
            HEADS=self._heads,
            KV_HEADS=self._kv_heads,
            DIM=self._dim,
            HALF=half,
            HALF_PADDED=_power(half),
            BLOCK=BLOCK_SIZE,
            NORMS=normed,
            TURNS=layer.turns,
            num_warps=1,
        )
        return query

    def _swiglu(self, gate_up: Tensor) -> Tensor:
        tokens, width = len(gate_up), gate_up.shape[1] // 2
        out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
        tile = 1024
        self._kernels.swiglu_kernel[(tokens, -(-width // tile))](gate_up, out, WIDTH=width, TILE=tile, num_warps=4)
        return out

    @torch.inference_mode()
    def _test(self, model: LoadedModel, original: nn.Module, layer: _Layer) -> None:
        """Compare the layer with the original on random rows: several tokens, then one more. Raises NotFused."""
        backend = self._backend
        blocks = tuple(range(-(-(TEST_TOKENS + 1) // BLOCK_SIZE)))
        generator = torch.Generator().manual_seed(layer.index)
        shape = (TEST_TOKENS + 1, model.hidden_size)
        rows = torch.randn(shape, generator=generator).to(model.device, model.dtype)
        try:
            for row in (Row(0, TEST_TOKENS, 0, blocks), Row(0, 1, TEST_TOKENS, blocks)):
                given = rows[row.start : row.start + row.count]
                positions = torch.arange(row.start, row.start + row.count, device=model.device)
                backend.begin([row])
                turns = model.module.model.rotary_emb(given[None], positions[None])
                expected = original(
                    given[None], attention_mask=None, position_ids=positions[None], position_embeddings=turns
                )
                expected = (expected[0] if isinstance(expected, tuple) else expected)[0]
                hidden, residual = self._layer(layer, given, None, positions)
                added = expected.float() - given.float()
                error = float(((hidden + residual).float() - expected.float()).abs().max())
                spread = max(float(added.square().mean().sqrt()), float(expected.float().square().mean().sqrt()) * 0.1)
                if not error <= TOLERANCES[model.dtype] * max(spread, 1e-6) * 10:
                    raise NotFused(
                        f"layer {layer.index} fused differs from the original by {error:.2g}, and {spread:.2g} is usual"
                    )
        finally:
            backend.zero(blocks)


def _require_plain(model: LoadedModel) -> None:
    """Raise NotFused where the model is put together otherwise than out of layers, a norm and a head."""
    body = getattr(model.module, "model", None)
    parts = (getattr(body, name, None) for name in ("layers", "norm", "rotary_emb"))
    head = getattr(model.module, "lm_head", None)
    if head is None or any(part is None for part in parts) or not hasattr(body.norm, "variance_epsilon"):  # type: ignore[union-attr]
        raise NotFused(f"models of {model.family} are not put together like those that can be fused")
    if model.module.config.hidden_act not in ("silu", "swish"):
        raise NotFused(f"the activation that can be fused is silu, not {model.module.config.hidden_act}")
    if model.dtype not in TOLERANCES:
        raise NotFused(f"{model.dtype} is not computed here")
    if len(head.weight) != model.vocab_size:
        raise NotFused("the head does not have one row for each token")


def _take(index: int, layer: Any, window: int | None) -> _Layer:
    """Return the layer's weights, joined. Raises AttributeError where it has no such modules."""
    attention, mlp = layer.self_attn, layer.mlp
    query_norm = getattr(attention, "q_norm", None)
    key_norm = getattr(attention, "k_norm", None)
    if (query_norm is None) != (key_norm is None):
        raise NotFused("queries are normed and keys are not, or the other way round")
    joined = hasattr(attention, "qkv_proj")
    projections = (attention.qkv_proj,) if joined else (attention.q_proj, attention.k_proj, attention.v_proj)
    halves = (mlp.gate_up_proj,) if hasattr(mlp, "gate_up_proj") else (mlp.gate_proj, mlp.up_proj)
    return _Layer(
        index=index,
        input_norm=layer.input_layernorm.weight,
        qkv=_joined(projections),
        qkv_bias=_biases(*projections),
        query_norm=None if query_norm is None else query_norm.weight,
        key_norm=None if key_norm is None else key_norm.weight,
        head_epsilon=0.0 if query_norm is None else float(query_norm.variance_epsilon),
        scaling=float(attention.scaling),
        window=window,
        turns=bool(getattr(attention, "use_rope", True)),
        out=attention.o_proj.weight,
        out_bias=attention.o_proj.bias,
        post_norm=layer.post_attention_layernorm.weight,
        gate_up=_joined(halves),
        gate_up_bias=_biases(*halves),
        down=mlp.down_proj.weight,
        down_bias=mlp.down_proj.bias,
        epsilon=float(layer.input_layernorm.variance_epsilon),
    )


def _joined(linears: tuple[Any, ...]) -> Tensor:
    weight: Tensor = linears[0].weight
    return weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])


def _share(layer: Any, taken: _Layer) -> None:
    """Let the original modules' weights be views of those that were joined, so that nothing is held twice."""
    attention, mlp = layer.self_attn, layer.mlp
    if not hasattr(attention, "qkv_proj"):
        _point(taken.qkv, attention.q_proj, attention.k_proj, attention.v_proj)
    if not hasattr(mlp, "gate_up_proj"):
        _point(taken.gate_up, mlp.gate_proj, mlp.up_proj)


def _point(joined: Tensor, *linears: Any) -> None:
    first = 0
    for linear in linears:
        rows = len(linear.weight)
        linear.weight.data = joined[first : first + rows]
        first += rows


def _biases(*linears: Any) -> Tensor | None:
    found = [linear.bias for linear in linears]
    if all(bias is None for bias in found):
        return None
    if any(bias is None for bias in found):
        raise NotFused("only some of the products that would be joined have biases")
    return torch.cat(found)


def _rotary_table(model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [max_model_len, head_dim / 2] float32, rounded as the model rounds them."""
    rotary: Any = model.module.model.rotary_emb
    positions = torch.arange(model.max_model_len, device=model.device)[None]
    try:
        found = rotary(torch.zeros(1, device=model.device, dtype=model.dtype), positions)
    except TypeError as error:
        raise NotFused(f"layers differ in how they turn queries and keys: {error}") from error
    cosines, sines = (part[0].float() for part in found)
    half = cosines.shape[1] // 2
    if not all(torch.equal(part[:, :half], part[:, half:]) for part in (cosines, sines)):
        raise NotFused("the rotation does not turn the halves of a head against each other")
    if 2 * half != model.head_dim:
        raise NotFused(f"{2 * half} of a head's {model.head_dim} dimensions are turned, not all")
    return cosines[:, :half].contiguous(), sines[:, :half].contiguous()


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
