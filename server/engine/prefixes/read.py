"""Read one adapter's file into the embedding table or the prefix KV that it stands for, exactly as PEFT does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from server.core import AdapterKind, AdapterSource, BaseModel
from server.errors import AdapterIncompatible, AdapterRejected


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """What an adapter is to the engine; one of the two is set.

    `table` [num_virtual_tokens, hidden_size] are input embeddings; `kv` [num_layers, 2, num_kv_heads,
    num_virtual_tokens, head_dim] are keys (after RoPE) and values. Both in the serving dtype.
    """

    table: Tensor | None = None
    kv: Tensor | None = None


def read_adapter(source: AdapterSource, base: BaseModel, dtype: torch.dtype) -> AdapterTensors:
    """Return the adapter's tensors on the CPU, cast to `dtype`, all values finite before and after the cast.

    Raises AdapterRejected when the file is not the published one, cannot be read, or holds NaN or infinity, and
    AdapterIncompatible when its shape is not the base model's.
    """
    tensors = _read_file(source)
    for name, tensor in tensors.items():
        _require_finite(tensor, f"tensor {name!r}")
    if source.kind.holds_kv:
        kv = _prefix_kv(tensors["prompt_embeddings"], base, source.num_virtual_tokens, dtype)
        _require_finite(kv, f"the prefix, once cast to {_name(dtype)},")
        return AdapterTensors(kv=kv)
    table = _table(tensors, source, base, dtype)
    _require_finite(table, f"the soft prompt, once cast to {_name(dtype)},")
    return AdapterTensors(table=table)


def _read_file(source: AdapterSource) -> dict[str, Tensor]:
    """Read the whole file first: a map of a file that somebody truncates would kill the process."""
    try:
        data = Path(source.path).read_bytes()
    except OSError as error:
        raise AdapterRejected(f"the adapter's tensor file cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise AdapterRejected("the adapter's tensor file is not the one that was published (its sha256 differs)")
    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise AdapterRejected(f"the adapter's tensor file is not a valid safetensors file: {error}") from error
    if "prompt_embeddings" not in tensors:
        raise AdapterRejected("the adapter's tensor file has no tensor 'prompt_embeddings'")
    return tensors


def _table(tensors: dict[str, Tensor], source: AdapterSource, base: BaseModel, dtype: torch.dtype) -> Tensor:
    """Return the soft prompt [num_virtual_tokens, hidden_size] in `dtype`.

    Multitask prompt tuning multiplies the shared prompt with a low-rank task matrix (arXiv:2303.02861, equation 2);
    it is computed in float32 and cast last.
    """
    table = tensors["prompt_embeddings"]
    _require_shape(table, (source.num_virtual_tokens, base.hidden_size), "virtual tokens x hidden size")
    if source.kind is AdapterKind.MULTITASK_PROMPT_TUNING:
        columns, rows = tensors.get("prefix_task_cols"), tensors.get("prefix_task_rows")
        if columns is None or rows is None or not source.key.task < len(columns) == len(rows):
            raise AdapterRejected(f"the adapter has no tensors for task {source.key.task}")
        task = columns[source.key.task].float() @ rows[source.key.task].float()
        table = table.float() * task
    if source.scale_by_sqrt_hidden:
        table = table.float() * base.hidden_size**0.5
    return table.to(dtype)


def _prefix_kv(flat: Tensor, base: BaseModel, length: int, dtype: torch.dtype) -> Tensor:
    """Return [num_layers, 2, num_kv_heads, length, head_dim] of PEFT's rows, one virtual token each."""
    _require_shape(flat, (length, base.kv_columns), "virtual tokens x layers * 2 * kv heads * head size")
    split = flat.to(dtype).view(length, base.num_layers, 2, base.num_kv_heads, base.head_dim)
    return split.permute(1, 2, 3, 0, 4).contiguous()


def _require_shape(tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != shape:
        raise AdapterIncompatible(
            f"'prompt_embeddings' is {list(tensor.shape)}, this base needs {list(shape)} ({meaning})"
        )


def _require_finite(tensor: Tensor, what: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise AdapterRejected(f"{what} holds {bad} values that are NaN or infinite")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
