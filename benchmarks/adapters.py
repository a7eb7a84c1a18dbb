"""Random adapters as large as trained ones, for our server as PEFT folders, for vLLM as prompt embeddings."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from server.core import AdapterKind, BaseModel
from server.formats.base import read_base_model
from server.formats.judge import AdapterLimits
from server.service.publishing import publish_folder
from server.store.opening import local_store

TENANT = "default"
_NOISE = 0.02
_KV_SIZE = 0.5
_MAX_VIRTUAL_TOKENS = 4096
_WRITERS = 4


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter to be made. Equal recipes make equal adapters."""

    name: str
    num_virtual_tokens: int
    seed: int
    kind: AdapterKind = AdapterKind.PROMPT_TUNING


class Workshop:
    """Makes adapters for one base model."""

    def __init__(self, model: Path) -> None:
        self._base: BaseModel = read_base_model(model)
        with safe_open(model / "model.safetensors", "pt") as file:
            self._embedding: Tensor = file.get_tensor("model.embed_tokens.weight")

    def publish(self, store: Path, recipes: list[Recipe]) -> None:
        """Publish all in the store. A version is on the disk before it counts, so several threads wait at once."""
        open_store = local_store(store)
        limits = AdapterLimits(_MAX_VIRTUAL_TOKENS)

        def one(recipe: Recipe) -> None:
            with TemporaryDirectory() as scratch:
                folder = self.write(Path(scratch), recipe)
                publish_folder(open_store, folder, TENANT, recipe.name, self._base, limits)

        with ThreadPoolExecutor(_WRITERS) as writers:
            list(writers.map(one, recipes))  # so that what failed in a thread is raised here

    def write(self, folder: Path, recipe: Recipe) -> Path:
        """Write the adapter into `folder` as PEFT would, over what is there, and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(self._config(recipe)))
        save_file(self._tensors(recipe), folder / "adapter_model.safetensors")
        return folder

    def embeddings(self, recipe: Recipe, prompt: tuple[int, ...]) -> str:
        """Return the soft prompt and the prompt's own embeddings, in bfloat16, as vLLM takes them."""
        rows = torch.cat([self._soft_prompt(recipe).to(torch.bfloat16), self._embedding[list(prompt)].bfloat16()])
        file = io.BytesIO()
        torch.save(rows, file)
        return base64.b64encode(file.getvalue()).decode()

    def _soft_prompt(self, recipe: Recipe) -> Tensor:
        """Return rows of the base's own embedding with a little noise [num_virtual_tokens, hidden_size], float32."""
        generator = torch.Generator().manual_seed(recipe.seed)
        ids = torch.randint(len(self._embedding), (recipe.num_virtual_tokens,), generator=generator)
        rows: Tensor = self._embedding[ids].float()
        return rows + _NOISE * torch.randn(rows.shape, generator=generator)

    def _tensors(self, recipe: Recipe) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(recipe.seed)
        rows = recipe.num_virtual_tokens
        if recipe.kind.holds_kv:
            return {"prompt_embeddings": torch.randn(rows, self._base.kv_columns, generator=generator) * _KV_SIZE}
        tensors = {"prompt_embeddings": self._soft_prompt(recipe)}
        if recipe.kind is AdapterKind.MULTITASK_PROMPT_TUNING:
            tensors["prefix_task_cols"] = torch.ones(1, rows, 1)
            tensors["prefix_task_rows"] = torch.ones(1, 1, self._base.hidden_size)
        return tensors

    def _config(self, recipe: Recipe) -> dict[str, Any]:
        rows, kind, base = recipe.num_virtual_tokens, recipe.kind, self._base
        config: dict[str, Any] = {
            "peft_type": kind.upper(),
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": rows,
            "num_layers": base.num_layers,
            "num_attention_heads": base.num_kv_heads,
            "token_dim": base.num_kv_heads * base.head_dim if kind.holds_kv else base.hidden_size,
            "num_transformer_submodules": 1,
            "base_model_name_or_path": base.name,
            "inference_mode": True,
        }
        if kind is AdapterKind.MULTITASK_PROMPT_TUNING:
            config |= {"num_tasks": 1, "num_ranks": 1}
        if kind is AdapterKind.CPT:
            ones = [1] * rows
            config |= {"cpt_token_ids": list(range(100, 100 + rows)), "cpt_mask": ones, "cpt_tokens_type_mask": ones}
        if kind is AdapterKind.CARTRIDGE:
            config["num_frozen_tokens"] = 1
        return config
