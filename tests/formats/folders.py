"""Make adapter folders by hand, right or wrong in one respect, for a base model of a few numbers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.core import AdapterKind, BaseModel

BASE = BaseModel(
    name="tiny",
    family="llama",
    digest="sha256:" + "b" * 64,
    vocab_size=100,
    hidden_size=12,
    num_layers=2,
    num_kv_heads=3,
    head_dim=4,
    context_length=64,
    eos_token_ids=(2,),
)
"""Soft prompts have 12 columns, prefixes 2 layers x 2 x 3 kv heads x 4 = 48."""

ROWS = 5
CONFIG, TENSORS, SIDECAR = "adapter_config.json", "adapter_model.safetensors", "waybill.json"
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "F64": 8}
Shapes = Mapping[str, Sequence[int]]


def shapes_of(kind: AdapterKind, base: BaseModel = BASE, rows: int = ROWS) -> dict[str, tuple[int, ...]]:
    """The tensors that a right file of this kind holds; multitask has 3 tasks of rank 2."""
    shapes: dict[str, tuple[int, ...]] = {
        "prompt_embeddings": (rows, base.kv_columns if kind.holds_kv else base.hidden_size)
    }
    if kind is AdapterKind.MULTITASK_PROMPT_TUNING:
        shapes["prefix_task_cols"] = (3, rows, 2)
        shapes["prefix_task_rows"] = (3, 2, base.hidden_size)
    return shapes


def config_of(kind: AdapterKind, base: BaseModel = BASE, rows: int = ROWS) -> dict[str, Any]:
    """What PEFT writes into adapter_config.json, as far as it matters."""
    config: dict[str, Any] = {
        "peft_type": kind.upper(),
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": rows,
        "num_layers": base.num_layers,
        "num_attention_heads": base.num_kv_heads,
        "token_dim": base.num_kv_heads * base.head_dim if kind.holds_kv else base.hidden_size,
        "num_transformer_submodules": 1,
        "base_model_name_or_path": base.name,
        "peft_version": "0.21.2",
        "inference_mode": True,
        "auto_mapping": None,
    }
    if kind is AdapterKind.MULTITASK_PROMPT_TUNING:
        config |= {"num_tasks": 3, "num_ranks": 2}
    if kind is AdapterKind.CPT:
        config["cpt_token_ids"] = list(range(rows))
    return config


def safetensors(shapes: Shapes, dtype: str = "F32", fill: bytes = b"\x3d") -> bytes:
    """A safetensors file with these tensors, their bytes `fill` over and over."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = SIZES[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return with_header(json.dumps(header).encode(), (fill * end)[:end])


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file of this header, whatever it says."""
    return struct.pack("<Q", len(header)) + header + data


def make_folder(
    folder: Path,
    kind: AdapterKind = AdapterKind.PROMPT_TUNING,
    *,
    rows: int = ROWS,
    base: BaseModel = BASE,
    config: Mapping[str, Any] | None = None,
    shapes: Shapes | None = None,
    sidecar: Mapping[str, Any] | None = None,
    fill: bytes = b"\x3d",
) -> Path:
    """Write an adapter's folder. `config` changes single keys, `sidecar` is waybill.json without its version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config_of(kind, base, rows) | dict(config or {})))
    tensors = safetensors(shapes_of(kind, base, rows) if shapes is None else shapes, fill=fill)
    (folder / TENSORS).write_bytes(tensors)
    if sidecar is not None:
        (folder / SIDECAR).write_text(json.dumps({"version": 1} | dict(sidecar)))
    return folder
