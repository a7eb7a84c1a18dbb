"""Models of real shapes with random weights, made on the device, and engines around them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu.setting import Setting
from server.core import AdapterKind, AdapterSource, BaseModel, PrefixKey
from server.engine.loading import Sizes, assemble
from server.engine.loop import Engine
from server.engine.model.load import LoadedModel, from_module

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "tie_word_embeddings": False,
}
QWEN3_06B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
DRY = TINY | {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
DRY |= {"num_hidden_layers": 1}
"""For the interpreter, which takes milliseconds for every layer, token and head."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model by its name, the class of its configuration, and what that is given."""

    name: str
    config: str
    arguments: dict[str, Any]


def shapes(setting: Setting) -> list[Shape]:
    """Return the models that are measured, the largest first."""
    if setting.dry:
        return [Shape("tiny-llama", "LlamaConfig", DRY)]
    return [Shape("llama-3.1-8b", "LlamaConfig", LLAMA_8B), Shape("qwen3-0.6b", "Qwen3Config", QWEN3_06B)]


def random_model(shape: Shape, setting: Setting, max_model_len: int) -> LoadedModel:
    """Make the model on the device, in the serving format."""
    config = getattr(transformers, shape.config)(**shape.arguments)
    with torch.device(setting.device):
        module = AutoModelForCausalLM.from_config(config, dtype=setting.dtype, attn_implementation="eager")
    return from_module(module, max_model_len=max_model_len, device=setting.device)


def base_of(model: LoadedModel) -> BaseModel:
    """Describe a model that has no folder; nothing ends a sequence but its length."""
    return BaseModel(
        name="random",
        family=model.family,
        digest="base",
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        context_length=model.max_model_len,
        eos_token_ids=(),
    )


def engine_for(model: LoadedModel, sizes: Sizes, attention: str = "triton", **options: Any) -> Engine:
    """Put an engine around the model, with threads of its own to read files."""
    readers = ThreadPoolExecutor(2)
    return assemble(model, base_of(model), sizes, attention, readers, **options)


def save_soft_prompt(folder: Path, number: int, length: int, model: LoadedModel) -> AdapterSource:
    """Write a random soft prompt and return where it is."""
    generator = torch.Generator().manual_seed(number)
    scale = float(model.embed.weight.float().std())
    table = torch.randn((length, model.hidden_size), generator=generator) * scale
    ids = tuple(range(model.vocab_size, model.vocab_size + length))
    return _save(folder, f"soft-{length}-{number}", table, AdapterKind.PROMPT_TUNING, length, ids)


def save_prefix(folder: Path, number: int, length: int, model: LoadedModel) -> AdapterSource:
    """Write random keys and values and return where they are."""
    columns = model.num_layers * 2 * model.num_kv_heads * model.head_dim
    generator = torch.Generator().manual_seed(number)
    table = (torch.randn((length, columns), generator=generator) * 0.1).to(model.dtype)
    return _save(folder, f"prefix-{length}-{number}", table, AdapterKind.CARTRIDGE, length, ())


def _save(
    folder: Path, name: str, table: Tensor, kind: AdapterKind, length: int, ids: tuple[int, ...]
) -> AdapterSource:
    path = folder / f"{name}.safetensors"
    save_file({"prompt_embeddings": table.contiguous()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return AdapterSource(PrefixKey("base", name, 0, length), kind, str(path), digest, length, ids)
