"""An adapter in memory, its configuration in PEFT's words, and its two files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from server.convert.tensors import Tensor
from server.core import AdapterKind
from server.formats.strict_json import Malformed

_HEADER_ALIGNMENT = 8  # bytes


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a converter found. `config` is adapter_config.json as bytes; `notes` are for the person who converts."""

    config: bytes
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def peft_config(kind: AdapterKind, num_virtual_tokens: int, **more: Any) -> bytes:
    """Return adapter_config.json for a table of so many rows; `more` are PEFT's keys for the kind.

    The base model is not named: none of these files says it so that it could be relied upon.
    """
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": num_virtual_tokens,
        "peft_type": kind.upper(),
        "revision": None,
        "task_type": "CAUSAL_LM",
        **more,
    }
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def soft_prompt(table: Tensor, notes: tuple[str, ...] = ()) -> Adapter:
    """Return the PROMPT_TUNING adapter of a table [virtual tokens, hidden]. Raises Malformed for another shape."""
    if len(table.shape) != 2 or 0 in table.shape:
        raise Malformed(f"its tensor has shape {list(table.shape)}; needed is [virtual tokens, hidden size]")
    rows, columns = table.shape
    config = peft_config(AdapterKind.PROMPT_TUNING, rows, token_dim=columns, prompt_tuning_init="RANDOM")
    return Adapter(config, {"prompt_embeddings": table}, notes)


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the order of their names (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for _, tensor in sorted(tensors.items()):
        file.writelines(tensor.rows())
