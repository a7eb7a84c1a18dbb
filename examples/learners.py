"""What is trained: PEFT's own prompt learning, and P-Tuning with virtual tokens anywhere in the text.

Both keep the base model frozen. Batches are padded on the right: PEFT's prompt learning is wrong under left padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from peft import PromptEncoder, PromptEncoderConfig, get_peft_model, initialize_kv_prefix_from_text
from peft.config import PeftConfig
from recipes import Recipe
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Learner(Protocol):
    """Something that can be trained, asked and saved."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser may change."""
        ...

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch; all three are [batch, tokens], labels -100 where not counted."""
        ...

    def next_logits(self, ids: list[int]) -> Tensor:
        """Return the logits [vocab_size] of the token after a prompt."""
        ...

    def generate(self, ids: list[int], max_tokens: int) -> list[int]:
        """Return the greedy continuation of a prompt."""
        ...

    def save(self, folder: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        ...


def learner_for(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Learner:
    """Return a fresh learner for `recipe`."""
    if isinstance(recipe.config, PromptEncoderConfig):
        return TemplateLearner(model, recipe.config)
    return PeftLearner(model, recipe.config, tokenizer, recipe.prefix_text)


class PeftLearner:
    """Virtual tokens, or keys and values, before everything: what PEFT trains by itself.

    `prefix_text` (prefix tuning only) is run through the model once; its keys and values are where training starts.
    """

    def __init__(
        self, model: PreTrainedModel, config: PeftConfig, tokenizer: PreTrainedTokenizerBase, prefix_text: str | None
    ) -> None:
        self._model = get_peft_model(model, config)
        self._eos = tokenizer.eos_token_id
        if prefix_text:
            initialize_kv_prefix_from_text(self._model, tokenizer, text=prefix_text, use_chat_template=False)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return self._model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def next_logits(self, ids: list[int]) -> Tensor:
        return self._model(input_ids=torch.tensor([ids])).logits[0, -1]

    def generate(self, ids: list[int], max_tokens: int) -> list[int]:
        rows = torch.tensor([ids])
        out = self._model.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), max_new_tokens=max_tokens, do_sample=False
        )
        return out[0, len(ids) :].tolist()

    def save(self, folder: Path) -> None:
        self._model.save_pretrained(str(folder))


class TemplateLearner:
    """P-Tuning as first described (Liu et al. 2021, arXiv:2103.10385): virtual tokens before and after the text.

    A small network, PEFT's `PromptEncoder`, makes their embeddings during training; only its output is saved, under
    the name and with the config of PEFT's P_TUNING. Ids from `vocab_size` on name rows of that table.
    """

    def __init__(self, model: PreTrainedModel, config: PromptEncoderConfig) -> None:
        self._model = model
        self._config = config
        self._embedding = model.get_input_embeddings()
        self._vocab_size = model.config.vocab_size
        self._rows = torch.arange(config.num_virtual_tokens)
        self._encoder = PromptEncoder(config)

    def parameters(self) -> list[nn.Parameter]:
        return list(self._encoder.parameters())

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return self._model(inputs_embeds=self._embed(ids), attention_mask=mask, labels=labels).loss

    def next_logits(self, ids: list[int]) -> Tensor:
        return self._model(inputs_embeds=self._embed(torch.tensor([ids]))).logits[0, -1]

    def generate(self, ids: list[int], max_tokens: int) -> list[int]:
        embeds = self._embed(torch.tensor([ids]))
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        out = self._model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False
        )
        return out[0].tolist()

    def save(self, folder: Path) -> None:
        table = self._encoder(self._rows).detach().contiguous()
        self._config.inference_mode = True
        self._config.save_pretrained(str(folder))
        save_file({"prompt_embeddings": table}, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _embed(self, ids: Tensor) -> Tensor:
        virtual = ids >= self._vocab_size
        words = self._embedding(ids.masked_fill(virtual, 0))
        table = self._encoder(self._rows)
        return torch.where(virtual[..., None], table[(ids - self._vocab_size).clamp(min=0)], words)
