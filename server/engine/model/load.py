"""Load a base model from a local Hugging Face folder, ready to be served or refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.core import BaseModel, EngineConfig
from server.engine.model.attention.base import KVShape
from server.engine.model.probe import probe
from server.engine.model.rope import pin_rotary
from server.engine.model.support import UnsupportedModel, refuse, require_supported_config


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A frozen transformers model and its dimensions, as found by running it."""

    module: PreTrainedModel
    embed: nn.Module  # token ids [..] -> [.., hidden_size], with the base's own scale if it has one
    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]  # per layer, in tokens
    dtype: torch.dtype
    device: torch.device
    max_model_len: int

    def kv_shape(self, num_blocks: int, block_size: int) -> KVShape:
        """Return the KV memory of so many blocks that fits this model."""
        return KVShape(
            self.num_layers,
            self.num_kv_heads,
            self.head_dim,
            num_blocks,
            block_size,
            self.dtype,
            self.device,
            self.num_heads,
        )


def load_model(config: EngineConfig) -> LoadedModel:
    """Load `config.model_path` from the disk alone, as safetensors and without running any code of the folder.

    Raises UnsupportedModel when the model cannot be served, or is not what `config.base` says.
    """
    try:
        found = AutoConfig.from_pretrained(config.model_path, local_files_only=True, trust_remote_code=False)
        require_supported_config(found)
        module, loading = AutoModelForCausalLM.from_pretrained(
            config.model_path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=getattr(torch, config.dtype),
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"the base model in {config.model_path} cannot be loaded: {error}") from error
    if missing := sorted(loading["missing_keys"]):
        # transformers fills them with random numbers and goes on.
        raise UnsupportedModel(
            f"the base model in {config.model_path} lacks {len(missing)} weights, first {missing[0]}"
        )
    model = from_module(module, max_model_len=config.max_model_len, device=torch.device(config.device))
    _require_same(model, config.base)
    return model


def from_module(module: PreTrainedModel, *, max_model_len: int, device: torch.device | None = None) -> LoadedModel:
    """Make a transformers causal language model ready to be served: frozen, rotary frequencies pinned, examined.

    Its weights keep their dtype. `max_model_len` is the longest sequence, in tokens, prefix included.
    Raises UnsupportedModel.
    """
    require_supported_config(module.config)
    family = module.config.model_type
    module = module.to(device or module.device).eval().requires_grad_(False)
    embed = module.get_input_embeddings()
    text = module.config.get_text_config(decoder=True)
    rows, hidden_size = embed.weight.shape
    if hidden_size != text.hidden_size or rows < text.vocab_size:
        reason = f"its embedding is {rows} x {hidden_size}, not {text.vocab_size} x {text.hidden_size}"
        raise refuse(family, reason)
    pin_rotary(module, family, max_model_len)
    layers = probe(module, family, max_model_len)
    return LoadedModel(
        module=module,
        embed=embed,
        family=family,
        vocab_size=text.vocab_size,
        hidden_size=hidden_size,
        num_layers=len(layers),
        num_heads=layers[0].num_heads,
        num_kv_heads=layers[0].num_kv_heads,
        head_dim=layers[0].head_dim,
        windows=tuple(layer.window for layer in layers),
        dtype=embed.weight.dtype,
        device=embed.weight.device,
        max_model_len=max_model_len,
    )


def _require_same(model: LoadedModel, base: BaseModel) -> None:
    """Raise UnsupportedModel when the model that was loaded is not the one that was announced."""
    names = ("vocab_size", "hidden_size", "num_layers", "num_kv_heads", "head_dim")
    for name in names:
        found, said = getattr(model, name), getattr(base, name)
        if found != said:
            raise refuse(model.family, f"its {name} is {found}, but its configuration was read as {said}")
