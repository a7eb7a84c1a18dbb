"""Files as the tools themselves write them, and the folders that come of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from server.convert.adapter import Adapter
from server.convert.child import convert
from server.convert.isolation import Conversion, convert_file
from server.convert.sources import SourceKind
from tests.tiny_models import tiny_model

Save = Callable[[object, Path], None]

SAVES: Mapping[str, Save] = {
    "zip": torch.save,
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
}
"""The form of torch.save, and the one before torch 1.6."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def peft_model(config: PeftConfig, dtype: torch.dtype = torch.float32) -> PeftModel:
    """The tiny llama with an adapter of random values, of the same values every time."""
    torch.manual_seed(0)
    return get_peft_model(tiny_model("llama"), config).to(dtype)


def soft_prompt(rows: int = 5, columns: int = 32) -> torch.Tensor:
    """Random values [rows, columns], the same every time."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def caikit_decoder(table: torch.Tensor, folder: Path, save: Save = torch.save) -> Path:
    """As caikit/caikit-nlp's PeftPromptTuning.save: the first rows of what PEFT saves, and its config.yml."""
    folder.mkdir(parents=True, exist_ok=True)
    save(table[: len(table)], folder / "decoder.pt")
    (folder / "config.yml").write_text("module_class: caikit_nlp.PeftPromptTuning\nDECODER: decoder.pt\nENCODER: ''\n")
    return folder / "decoder.pt"


class TrainableCache(nn.Module):
    """As HazyResearch/cartridges holds its parameters (cache.py): [1, kv heads, tokens, head size] a layer."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], num_frozen: int) -> None:
        super().__init__()
        self.frozen_keys = _parameters(keys, slice(num_frozen), learns=False) if num_frozen else nn.ParameterList()
        self.frozen_values = _parameters(values, slice(num_frozen), learns=False) if num_frozen else nn.ParameterList()
        self.trainable_keys = _parameters(keys, slice(num_frozen, None))
        self.trainable_values = _parameters(values, slice(num_frozen, None))

    def save(self, path: Path, save: Save = torch.save, frozen: str = "frozen") -> Path:
        """Write the four lists; files of mid-2025 say "fixed" for frozen."""
        save(
            {
                "trainable_keys": self.trainable_keys,
                "trainable_values": self.trainable_values,
                f"{frozen}_keys": self.frozen_keys,
                f"{frozen}_values": self.frozen_values,
            },
            path,
        )
        return path


def _parameters(tensors: list[torch.Tensor], tokens: slice, *, learns: bool = True) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(each[:, :, tokens].contiguous(), requires_grad=learns) for each in tensors])


def kv(layers: int = 2, heads: int = 2, tokens: int = 6, head_dim: int = 8) -> tuple[list[Any], list[Any]]:
    """Random keys and values, a layer each, of the tiny llama's shape."""
    values = torch.randn(2, layers, 1, heads, tokens, head_dim, generator=torch.Generator().manual_seed(0))
    return list(values[0]), list(values[1])


META = {"name": "Tale", "author": "A. Writer", "supported": ["Generic 6B"], "description": "a tale's voice"}


def kobold_zip(
    array: np.ndarray[Any, Any], path: Path, meta: Mapping[str, Any] | None = META, packed: int = zipfile.ZIP_LZMA
) -> Path:
    """As KoboldAI's trainers write it: the array packed, then meta.json stored behind it."""
    with zipfile.ZipFile(path, "w", compression=packed) as archive, archive.open("tensor.npy", "w") as file:
        np.save(file, array, allow_pickle=False)
    if meta is not None:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive, archive.open("meta.json", "w") as file:
            file.write(json.dumps(meta, indent=2).encode("utf-8"))
    return path


def read(kind: SourceKind, path: Path) -> Adapter:
    """What the child would make of a file, without a process of its own."""
    config = path.with_name("adapter_config.json")
    data = memoryview(path.read_bytes())
    with path.open("rb") as file:
        return convert(kind, file, data, config.read_bytes() if config.exists() else b"")


def values(adapter: Adapter, name: str = "prompt_embeddings") -> torch.Tensor:
    """One tensor of an adapter in memory."""
    tensor = adapter.tensors[name]
    return torch.frombuffer(bytearray(b"".join(tensor.rows())), dtype=DTYPES[tensor.dtype]).reshape(tensor.shape)


def converted(source: Path) -> Conversion:
    """Convert into a folder beside the source's, and prove that nothing else is left there."""
    target = source.parent / "converted"
    before = set(source.parent.iterdir())
    made = convert_file(source, target)
    assert set(source.parent.iterdir()) - before == {target}
    assert {path.name for path in target.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    return made
