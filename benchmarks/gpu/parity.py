"""Whole engines on the device against transformers, in float32, alone and in a crowd; and bf16 within its rounding."""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu.models import base_of, engine_for, save_prefix, save_soft_prompt
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shapes import DRY, TINY
from server.core import AdapterSource, SamplingParams
from server.engine.loading import Sizes
from server.engine.loop import Engine
from server.engine.messages import StepReport, Submit
from server.engine.model.load import LoadedModel, from_module
from server.engine.prefixes.read import read_adapter

FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen2": ("Qwen2Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": 24}),
    "gemma2": ("Gemma2Config", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
    "gpt2": ("GPT2Config", None),
}
Question = tuple[tuple[int, ...], AdapterSource | None]
SIZES = Sizes(num_blocks=120, block_size=16, prefix_blocks=40, max_seqs=16, step_tokens=256, max_model_len=160)


def run(setting: Setting) -> dict[str, Any]:
    """Return, by family, the largest difference of a logit over the logits' deviation; tokens have to be equal."""
    torch.backends.cuda.matmul.allow_tf32 = False
    found: dict[str, Any] = {}
    wrong = []
    for family in list(FAMILIES)[:1] if setting.dry else FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[family] = _family(setting, family, Path(folder))
            except Exception:
                wrong.append(family)
                found[family] = traceback.format_exc().splitlines()[-10:]
    return found | ({"failed": wrong} if wrong else {})


def _family(setting: Setting, family: str, folder: Path) -> dict[str, float]:
    model = _tiny(setting, family)
    questions = _questions(setting, model, folder)
    expected = [_oracle(setting, family, tokens, source) for tokens, source in questions]
    new = _new_tokens(setting)
    found: dict[str, float] = {}
    for name, options in (("plain", {"fused": False}), ("fused", {})):
        engine = engine_for(_tiny(setting, family), SIZES, static=True, **options)
        crowd, rows = _ask(engine, questions, new, listen=True)
        ahead, _ = _ask(engine, questions, new, listen=False)
        alone = [_ask(engine, [question], new, listen=False)[0][0] for question in questions[: 1 if setting.dry else 3]]
        for index, (tokens, logits) in enumerate(expected):
            assert crowd[index] == tokens, (
                f"{family} {name}: question {index} was answered {crowd[index]}, not {tokens}"
            )
            assert ahead[index] == tokens, f"{family} {name}: one step ahead, question {index} was answered otherwise"
            if index < len(alone):
                assert alone[index] == tokens, f"{family} {name}: alone, question {index} was answered otherwise"
            error = float((rows[index] - logits).abs().max() / max(1.0, float(logits.std())))
            found[name] = max(found.get(name, 0.0), error)
    if max(found.values()) > 1e-4:
        raise AssertionError(f"{family}: logits differ by {found}")
    crowd, _ = _ask(engine, questions, new, listen=False, temperature=1.0)
    assert _ask(engine, questions[:1], new, listen=False, temperature=1.0)[0][0] == crowd[0], (
        "a seeded draw differs in a crowd"
    )
    return found


def _questions(setting: Setting, model: LoadedModel, folder: Path) -> list[Question]:
    """Return a short and a longer prompt behind no adapter, a soft prompt, and prefixes of some blocks."""
    sources = [None, save_soft_prompt(folder, 1, 9, model), save_prefix(folder, 2, 21, model)]
    lengths: tuple[int, ...] = (5,)
    if not setting.dry:
        sources.append(save_prefix(folder, 3, 40, model))
        lengths = (5, 33)
    generator = torch.Generator().manual_seed(5)
    return [
        (tuple(torch.randint(3, model.vocab_size, (length,), generator=generator).tolist()), source)
        for length in lengths
        for source in sources
    ]


def _new_tokens(setting: Setting) -> int:
    return 4 if setting.dry else 12


def _tiny(setting: Setting, family: str) -> LoadedModel:
    name, extra = FAMILIES[family]
    arguments = (
        {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
        if extra is None
        else (DRY if setting.dry else TINY) | extra
    )
    config = getattr(transformers, name)(**arguments)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4.0)
    return from_module(module, max_model_len=160, device=setting.device)


@torch.inference_mode()
def _oracle(
    setting: Setting, family: str, tokens: tuple[int, ...], source: AdapterSource | None
) -> tuple[tuple[int, ...], Tensor]:
    """Return the greedy tokens of transformers' own forward over one unpadded sequence, and each position's logits."""
    from transformers import DynamicCache

    model = _tiny(setting, family)
    module, ids, drawn = model.module, list(tokens), []
    embed = model.embed
    for _ in range(_new_tokens(setting)):
        rows = embed(torch.tensor([ids], device=model.device))
        inputs: dict[str, Any] = {}
        before = 0
        if source is not None:
            tensors = read_adapter(source, base_of(model), model.dtype)
            before = source.num_virtual_tokens
            if tensors.kv is not None:
                cache = DynamicCache()
                for layer in range(model.num_layers):
                    cache.update(*(part[None].to(model.device) for part in tensors.kv[layer]), layer)
                inputs["past_key_values"] = cache
                length = before + len(ids)
                inputs["position_ids"] = torch.arange(before, length, device=model.device)[None]
                inputs["attention_mask"] = torch.ones((1, length), device=model.device, dtype=torch.long)
            else:
                assert tensors.table is not None
                rows = torch.cat([tensors.table[None].to(rows), rows], dim=1)
        logits = module(inputs_embeds=rows, **inputs).logits[0, -len(ids) :].float()
        drawn.append(int(logits[-1].argmax()))
        ids.append(drawn[-1])
    return tuple(drawn), logits


def _ask(
    engine: Engine,
    questions: list[Question],
    new: int,
    *,
    listen: bool,
    temperature: float = 0.0,
) -> tuple[list[tuple[int, ...]], list[Tensor]]:
    drawn: list[list[int]] = [[] for _ in questions]
    rows: list[dict[int, Tensor]] = [{} for _ in questions]
    for index, (tokens, source) in enumerate(questions):
        params = SamplingParams(max_tokens=new, temperature=temperature, seed=index)
        message = Submit(index, tokens, params, source)
        if listen:
            engine.submit(
                message,
                rows=frozenset(range(len(tokens))),
                on_row=lambda position, logits, index=index: rows[index].__setitem__(position, logits.clone()),
            )
        else:
            engine.submit(message)
    pending = set(range(len(questions)))
    while pending:
        for arrived in engine.drain(block=engine.waits):
            assert arrived is not None
            engine.handle(arrived)
        for reply in engine.step():
            assert isinstance(reply, StepReport)
            assert not reply.failures, reply.failures
            for event in reply.events:
                drawn[event.sequence].append(event.token)
                if event.finish is not None:
                    pending.discard(event.sequence)
    lengths = [len(tokens) + new - 1 for tokens, _ in questions]
    stacked = [torch.stack([row[p] for p in range(n)]) for row, n in zip(rows, lengths, strict=True)] if listen else []
    return [tuple(tokens) for tokens in drawn], stacked
