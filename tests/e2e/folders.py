"""PEFT folders for the embedded base model, written without PEFT: quick, and of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from server.core import AdapterKind
from tests.e2e.running import MODEL

HIDDEN, LAYERS, KV_HEADS, HEAD_DIM = 576, 30, 3, 64


def embedding_rows(count: int, seed: int) -> Tensor:
    """Rows of the base's own embedding, with a little noise: what a trained soft prompt looks like."""
    generator = torch.Generator().manual_seed(seed)
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        table = file.get_slice("model.embed_tokens.weight")
        start = int(torch.randint(1000, 40000, (1,), generator=generator))
        rows: Tensor = table[start : start + count].float()
    return rows + 0.02 * torch.randn(rows.shape, generator=generator)


def kv_rows(count: int, seed: int) -> Tensor:
    """Random keys and values of the size that the base's own have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, LAYERS * 2 * KV_HEADS * HEAD_DIM, generator=generator) * 0.5


def write_folder(
    folder: Path, kind: AdapterKind, num_virtual_tokens: int, seed: int, template: str | None = None
) -> Path:
    """Write one adapter folder and return it."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": kind.value.upper(),
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": num_virtual_tokens,
        "base_model_name_or_path": "smollm2-135m",
        "inference_mode": True,
    }
    if kind.holds_kv:
        tensors = {"prompt_embeddings": kv_rows(num_virtual_tokens, seed)}
    else:
        tensors = {"prompt_embeddings": embedding_rows(num_virtual_tokens, seed)}
    if kind is AdapterKind.MULTITASK_PROMPT_TUNING:
        generator = torch.Generator().manual_seed(seed)
        config |= {"num_tasks": 2, "num_ranks": 1}
        tensors["prefix_task_cols"] = 1 + 0.1 * torch.randn(2, num_virtual_tokens, 1, generator=generator)
        tensors["prefix_task_rows"] = 1 + 0.1 * torch.randn(2, 1, HIDDEN, generator=generator)
    if kind is AdapterKind.CPT:
        ids = [100 + i for i in range(num_virtual_tokens)]
        config |= {"cpt_token_ids": ids, "cpt_mask": [1] * len(ids), "cpt_tokens_type_mask": [1] * len(ids)}
    if kind is AdapterKind.CARTRIDGE:
        config |= {"num_frozen_tokens": 1}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    if template is not None:
        (folder / "waybill.json").write_text(json.dumps({"version": 1, "template": template}))
    return folder
