"""A tiny random llama that spells bytes, and soft prompts for it: a whole server starts and answers in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.tiny_models import tiny_model

ROWS = 6


def make_tiny(folder: Path, **overrides: Any) -> Path:
    """Write the model's folder; `overrides` go to its configuration."""
    model = tiny_model("llama", **overrides)
    model.save_pretrained(folder)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(pieces[: model.config.vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def soft_prompt(folder: Path, seed: int) -> Path:
    """Write an adapter's folder; every seed makes another."""
    folder.mkdir(parents=True)
    hidden = tiny_model("llama").config.hidden_size
    rows = torch.randn(ROWS, hidden, generator=torch.Generator().manual_seed(seed))
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": ROWS, "token_dim": hidden}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": rows}, str(folder / "adapter_model.safetensors"))
    return folder
