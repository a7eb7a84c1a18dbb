"""The same model under transformers' `generate` and `generate_batch`, in the same run."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.gpu.models import random_model, shapes
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import synchronize


def run(setting: Setting) -> dict[str, Any]:
    """Return output tokens per second over whole runs of 64 prompts, prefill included, and of decoding alone."""
    count, context, fresh = (2, 16, 4) if setting.dry else (64, 1024, 64)
    model = random_model(shapes(setting)[0], setting, max_model_len=2 * context)
    module: Any = model.module
    module.set_attn_implementation("sdpa")
    ids = torch.randint(3, model.vocab_size, (count, context), device=setting.device)
    mask = torch.ones_like(ids)
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found: dict[str, Any] = {}

    def generate(new: int) -> float:
        synchronize(setting.device)
        began = time.perf_counter()
        module.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **settings)
        synchronize(setting.device)
        return time.perf_counter() - began

    generate(2)
    short, whole = generate(2), generate(fresh)
    found["generate"] = {"tok_s": count * fresh / whole, "decode_tok_s": count * (fresh - 2) / max(whole - short, 1e-9)}
    if setting.left < 60 and not setting.dry:
        return found
    try:
        found["generate_batch"] = _continuous(setting, module, ids, fresh)
    except Exception as error:  # whatever it needs that is not here
        found["generate_batch"] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    return found


def _continuous(setting: Setting, module: Any, ids: torch.Tensor, fresh: int) -> dict[str, float]:
    config = GenerationConfig(max_new_tokens=fresh, do_sample=False, pad_token_id=0, eos_token_id=-1)
    options: dict[str, Any] = {}
    if setting.dry:
        # Not every version has it; on a CPU, without, most of the machine's memory would be taken for the cache.
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        options["continuous_batching_config"] = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    inputs = ids.tolist()
    module.generate_batch(inputs=inputs[:2], generation_config=config, **options)
    synchronize(setting.device)
    began = time.perf_counter()
    outputs = module.generate_batch(inputs=inputs, generation_config=config, **options)
    synchronize(setting.device)
    seconds = time.perf_counter() - began
    tokens = sum(len(output.generated_tokens) for output in outputs.values())
    return {"tok_s": tokens / seconds, "tokens": tokens}
