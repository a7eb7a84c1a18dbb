"""Models of real shapes with random weights, made on the device, and engines around them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shapes import DRY, LLAMA_8B, QWEN3_06B, Shape
from server.core import AdapterKind, AdapterSource, BaseModel, PrefixKey
from server.engine.loading import Sizes, assemble
from server.engine.loop import Engine
from server.engine.model.load import LoadedModel, from_module


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
