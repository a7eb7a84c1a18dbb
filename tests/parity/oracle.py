"""The oracle: PEFT itself on one unpadded sequence in float32, and adapters made by PEFT's own `save_pretrained`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from server.core import AdapterKind, AdapterSource, PrefixKey

NEW_TOKENS = 24

MakeConfig = Callable[[int], peft.PeftConfig]

CONFIGS: dict[AdapterKind, MakeConfig] = {
    AdapterKind.PROMPT_TUNING: lambda p: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=p),
    AdapterKind.MULTITASK_PROMPT_TUNING: lambda p: peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=p, num_tasks=3, num_ranks=2
    ),
    AdapterKind.P_TUNING: lambda p: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=p, encoder_hidden_size=48
    ),
    AdapterKind.CPT: lambda p: peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[5 + i % 50 for i in range(p)],
        cpt_mask=[1] * p,
        cpt_tokens_type_mask=[1 + i % 4 for i in range(p)],
    ),
    AdapterKind.PREFIX_TUNING: lambda p: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=p),
    AdapterKind.CARTRIDGE: lambda p: peft.CartridgeConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=p, num_frozen_tokens=1
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one sequence must give. `logits` [prompt + new_tokens - 1, vocab_size]: every position's but the last's."""

    tokens: tuple[int, ...]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter folder as PEFT wrote it, and the task it is asked for."""

    kind: AdapterKind
    folder: Path
    num_virtual_tokens: int
    task: int = 0

    def source(
        self, vocab_size: int, *, prefix_ids: tuple[int, ...] | None = None, needs_table: bool = False
    ) -> AdapterSource:
        """What the engine is told: virtual tokens before everything, or another compiled run."""
        if prefix_ids is None:
            rows = 0 if self.kind.holds_kv else self.num_virtual_tokens
            prefix_ids = tuple(range(vocab_size, vocab_size + rows))
        path = self.folder / "adapter_model.safetensors"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        length = self.num_virtual_tokens if self.kind.holds_kv else len(prefix_ids)
        return AdapterSource(
            key=PrefixKey("base", f"sha256:{sha256}", self.task, length),
            kind=self.kind,
            path=str(path),
            sha256=sha256,
            num_virtual_tokens=self.num_virtual_tokens,
            prefix_ids=prefix_ids,
            needs_table=needs_table,
        )

    def table(self) -> Tensor:
        """The soft prompt [num_virtual_tokens, hidden_size], read independently of the engine's own reader."""
        tensors = load_file(self.folder / "adapter_model.safetensors")
        table: Tensor = tensors["prompt_embeddings"]
        if self.kind is AdapterKind.MULTITASK_PROMPT_TUNING:
            table = table * (tensors["prefix_task_cols"][self.task] @ tensors["prefix_task_rows"][self.task])
        return table


def save_adapter(
    module: nn.Module, kind: AdapterKind, folder: Path, num_virtual_tokens: int, task: int = 0
) -> SavedAdapter:
    """Let PEFT make an adapter of random values on `module` and save it; `module` is left as it was."""
    torch.manual_seed(len(kind) * 1000 + num_virtual_tokens)
    wrapped = peft.get_peft_model(module, CONFIGS[kind](num_virtual_tokens)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "prompt_encoder" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.7)
    wrapped.save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"].lower() == kind
    return SavedAdapter(kind, folder, num_virtual_tokens, task)


@torch.no_grad()
def ask_peft(
    make_module: Callable[[], nn.Module], adapter: SavedAdapter, prompt: list[int], new_tokens: int = NEW_TOKENS
) -> Answer:
    """PEFT's greedy tokens and logits. `make_module` gives a fresh copy of the base, since PEFT changes its own."""
    wrapped = peft.PeftModel.from_pretrained(make_module(), str(adapter.folder)).eval()
    extra = {}
    if adapter.kind is AdapterKind.MULTITASK_PROMPT_TUNING:
        extra["task_ids"] = torch.tensor([adapter.task])
    skip = 0 if adapter.kind.holds_kv else adapter.num_virtual_tokens

    def logits_of(ids: list[int]) -> Tensor:
        row = torch.tensor([ids])
        return wrapped(input_ids=row, attention_mask=torch.ones_like(row), **extra).logits[0, skip:]

    return _greedy(logits_of, prompt, new_tokens)


@torch.no_grad()
def ask_plain(
    module: nn.Module, prompt: list[int], table: Tensor | None = None, new_tokens: int = NEW_TOKENS
) -> Answer:
    """The base model's own answer over `inputs_embeds`; ids from the vocabulary's end on name rows of `table`."""
    embed = module.get_input_embeddings()
    vocab = module.config.vocab_size

    def logits_of(ids: list[int]) -> Tensor:
        parts = [embed(torch.tensor([i])) if i < vocab else table[i - vocab : i - vocab + 1] for i in ids]
        return module(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]

    return _greedy(logits_of, prompt, new_tokens)


def _greedy(logits_of: Callable[[list[int]], Tensor], prompt: list[int], new_tokens: int) -> Answer:
    """Decode by whole forwards of the grown sequence: slow, and free of any cache's mistakes."""
    ids = list(prompt)
    for _ in range(new_tokens):
        logits = logits_of(ids)
        ids.append(int(logits[-1].argmax()))
    return Answer(tuple(ids[len(prompt) :]), logits.float())
