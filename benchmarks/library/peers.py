"""What people run today without a server: PEFT's `generate`, and transformers' continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

Request = tuple[str | None, list[int]]
"""An adapter's name and a prompt."""

Answerer = Callable[[Sequence[Request], int], int]
"""Answers requests with so many tokens each, and returns how many tokens it made."""


def load(kind: str, model: Path, adapters: Path | None) -> Answerer:
    """Return the peer of that name; adapters are the folders inside `adapters`."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    if kind == "transformers":
        return continuous_batching(base)
    assert adapters is not None
    wrapped = _with_adapters(base, sorted(adapters.iterdir()))
    return one_by_one(wrapped) if kind == "peft" else adapter_by_adapter(wrapped)


def one_by_one(model: Any) -> Answerer:
    """PEFT, a request at a time, as it comes."""

    def answer(requests: Sequence[Request], new_tokens: int) -> int:
        return sum(_generate(model, name, [prompt], new_tokens) for name, prompt in requests)

    return answer


def adapter_by_adapter(model: Any) -> Answerer:
    """PEFT, an adapter at a time, with the requests for it in one batch: what one gets who collects them first."""

    def answer(requests: Sequence[Request], new_tokens: int) -> int:
        groups: dict[str | None, list[list[int]]] = {}
        for name, prompt in requests:
            groups.setdefault(name, []).append(prompt)
        return sum(_generate(model, name, prompts, new_tokens) for name, prompts in groups.items())

    return answer


def continuous_batching(model: Any) -> Answerer:
    """`generate_batch` of transformers, greedy, all requests at once."""

    def answer(requests: Sequence[Request], new_tokens: int) -> int:
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        made = model.generate_batch(
            inputs=[prompt for _, prompt in requests],
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=512),
        )
        return sum(len(output.generated_tokens) for output in made.values())

    return answer


@torch.inference_mode()
def _generate(model: Any, name: str | None, prompts: list[list[int]], new_tokens: int) -> int:
    model.set_adapter(name)
    ids = torch.tensor(prompts)
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return int(made[:, -new_tokens:].numel())


def _with_adapters(base: Any, folders: list[Path]) -> Any:
    first, *others = folders
    model = PeftModel.from_pretrained(base, str(first), adapter_name=first.name)
    for folder in others:
        model.load_adapter(str(folder), adapter_name=folder.name)
    return model.eval()
