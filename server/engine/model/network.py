"""Decoders of the Llama kind, whole, in compiled code: what replaces a transformers model's forward where it can.

A model is taken when its modules have the names and settings of one of `FAMILIES`; whether the result is right is not a
matter of names: the start-up check compares it with transformers' own forward before it serves anyone (`guard`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from server.engine.model.attention.native import NativeBackend
from server.engine.model.load import LoadedModel
from server.engine.native.library import NativeLibrary

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class NotNative(Exception):
    """The model cannot be run by the compiled decoder; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Peaks:
    """The best of each row of logits; the lowest id where several tie."""

    values: Tensor  # [rows] float32
    ids: Tensor  # [rows] int32
    finite: Tensor  # [rows] bool: whether the whole row is


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab")),
        ("rotary", ctypes.c_int),
        ("positions", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    )


_WEIGHTS = ("q", "k", "v", "o", "gate", "up", "down")
_FLOATS = ("q_bias", "k_bias", "v_bias", "input_norm", "post_norm", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _WEIGHTS + _FLOATS),
        ("scaling", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("turns", ctypes.c_int32),
    )


class Network:
    """A model's weights, packed, and its forward over the KV memory of a `NativeBackend`."""

    def __init__(self, model: LoadedModel, backend: NativeBackend) -> None:
        """Pack the weights of `model`, which is left as it is. Raises NotNative."""
        _require_family(model)
        self._library = backend.library
        self._backend = backend
        self._vocab_size = model.vocab_size
        self._hidden = model.hidden_size
        self._dtype = model.dtype
        layers = model.module.model.layers
        cosines, sines = _rotary_table(model)
        shape = _Shape(
            layers=len(layers),
            hidden=model.hidden_size,
            heads=model.num_heads,
            kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            ffn=layers[0].mlp.gate_proj.weight.shape[0],
            vocab=model.vocab_size,
            rotary=2 * cosines.shape[1],
            positions=len(cosines),
            epsilon=layers[0].input_layernorm.variance_epsilon,
        )
        lib = _declared(self._library)
        self._handle = ctypes.c_void_p(
            lib.waybill_network_create(
                ctypes.byref(shape), _at(cosines), _at(sines), self._library.threads, model.dtype.itemsize
            )
        )
        for index, (layer, window) in enumerate(zip(layers, model.windows, strict=True)):
            tensors, struct = _layer_struct(layer, model.dtype, window)
            lib.waybill_network_set_layer(self._handle, index, ctypes.byref(struct))
            del tensors  # packed; until here they had to live
        head = _weight(model.module.lm_head, model.dtype)
        norm = _float(model.module.model.norm.weight)
        lib.waybill_network_set_head(self._handle, _at(head), _at(norm))
        self._logits = torch.zeros((0, model.vocab_size))

    def limit_windows(self, tokens: int | None) -> None:
        """Cut every layer's sliding window to at most so many tokens, for a check; None undoes it."""
        self._library.lib.waybill_network_limit_windows(self._handle, tokens or 0)

    def forward(self, embeddings: Tensor, keep: Sequence[int], *, wants_logits: bool) -> tuple[Tensor, Peaks]:
        """Compute the step that the backend's `begin` described; return logits and peaks of the rows in `keep`.

        `embeddings` [num_tokens, hidden_size]. The logits [len(keep), vocab_size] float32 are overwritten by the next
        call; without `wants_logits` they have no rows.
        """
        rows = len(keep)
        embeddings = embeddings.to(self._dtype).contiguous()
        if wants_logits and len(self._logits) < rows:
            self._logits = torch.empty((rows, self._vocab_size), dtype=torch.float32)
        logits = self._logits[: rows if wants_logits else 0]
        index = torch.tensor(keep, dtype=torch.int32)
        peaks = Peaks(torch.empty(rows), torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.bool))
        self._library.lib.waybill_network_forward(
            self._handle,
            self._library.pool,
            self._backend.plan,
            self._backend.memory,
            _at(embeddings),
            _at(index),
            rows,
            _at(logits) if wants_logits else None,
            _at(peaks.values),
            _at(peaks.ids),
            _at(peaks.finite),
        )
        return logits, peaks


def _declared(library: NativeLibrary) -> ctypes.CDLL:
    lib, pointer = library.lib, ctypes.c_void_p
    lib.waybill_network_create.restype = pointer
    lib.waybill_network_create.argtypes = [pointer, pointer, pointer, ctypes.c_int, ctypes.c_int]
    lib.waybill_network_set_layer.restype = None
    lib.waybill_network_set_layer.argtypes = [pointer, ctypes.c_int, pointer]
    lib.waybill_network_set_head.restype = None
    lib.waybill_network_set_head.argtypes = [pointer, pointer, pointer]
    lib.waybill_network_limit_windows.restype = None
    lib.waybill_network_limit_windows.argtypes = [pointer, ctypes.c_int]
    lib.waybill_network_forward.restype = None
    lib.waybill_network_forward.argtypes = [*(pointer,) * 6, ctypes.c_int, *(pointer,) * 4]
    return lib


def _at(tensor: Tensor) -> int:
    assert tensor.is_contiguous(), "compiled code reads tensors as they lie in memory"
    return tensor.data_ptr()


def _require_family(model: LoadedModel) -> None:
    config = model.module.config
    if model.family not in FAMILIES:
        raise NotNative(f"the compiled decoder knows {', '.join(sorted(FAMILIES))}, not {model.family}")
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        raise NotNative(
            f"the compiled decoder runs float32 and bfloat16 on the CPU, not {model.dtype} on {model.device}"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise NotNative(f"the compiled decoder's activation is silu, not {config.hidden_act}")
    for layer in model.module.model.layers:
        plain = (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        if any(linear.bias is not None for linear in plain):
            raise NotNative("the compiled decoder has biases on queries, keys and values only")
    head = model.module.lm_head
    if head.bias is not None or len(head.weight) != model.vocab_size:
        raise NotNative("the compiled decoder's head has no bias and one row for each token")


def _rotary_table(model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [max_model_len, rotary dims / 2] as the model itself computes them."""
    rotary = model.module.model.rotary_emb
    positions = torch.arange(model.max_model_len)[None]
    cosines, sines = (part[0].float() for part in rotary(torch.zeros(1), positions))
    half = cosines.shape[1] // 2
    if not all(torch.equal(part[:, :half], part[:, half:]) for part in (cosines, sines)):
        raise NotNative("the compiled decoder turns the halves of a head against each other")
    return cosines[:, :half].contiguous(), sines[:, :half].contiguous()


def _layer_struct(layer: Any, dtype: torch.dtype, window: int | None) -> tuple[list[Tensor], _Layer]:
    """Return the layer's tensors, which must outlive the struct, and the struct that points at them."""
    attention, mlp = layer.self_attn, layer.mlp
    named: dict[str, Tensor | None] = {
        "q": _weight(attention.q_proj, dtype),
        "k": _weight(attention.k_proj, dtype),
        "v": _weight(attention.v_proj, dtype),
        "o": _weight(attention.o_proj, dtype),
        "gate": _weight(mlp.gate_proj, dtype),
        "up": _weight(mlp.up_proj, dtype),
        "down": _weight(mlp.down_proj, dtype),
        "q_bias": _bias(attention.q_proj),
        "k_bias": _bias(attention.k_proj),
        "v_bias": _bias(attention.v_proj),
        "input_norm": _float(layer.input_layernorm.weight),
        "post_norm": _float(layer.post_attention_layernorm.weight),
        "q_norm": _norm(attention, "q_norm"),
        "k_norm": _norm(attention, "k_norm"),
    }
    pointers = {name: None if tensor is None else _at(tensor) for name, tensor in named.items()}
    struct = _Layer(**pointers, scaling=attention.scaling, softcap=0.0, window=window or 0, turns=1)
    return [tensor for tensor in named.values() if tensor is not None], struct


def _weight(linear: nn.Module, dtype: torch.dtype) -> Tensor:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach().to(dtype).contiguous()


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def _bias(linear: nn.Module) -> Tensor | None:
    bias = cast("Tensor | None", linear.bias)
    return None if bias is None else _float(bias)


def _norm(attention: nn.Module, name: str) -> Tensor | None:
    norm = getattr(attention, name, None)
    return None if norm is None else _float(norm.weight)
