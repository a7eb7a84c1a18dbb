"""Read `adapter_config.json` as PEFT writes it, without acting on anything it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.core import AdapterKind
from server.formats import typed
from server.formats.strict_json import Malformed, parse_object, shown

MAX_BYTES = 256 * 1024
"""A CPT config lists its tokens three times, one number a line: 4,096 tokens do not fit in 64 KiB."""

MAX_TASKS = 1024
MAX_RANKS = 1024
_MAX_DIM = 1_000_000

_KINDS = {kind.upper(): kind for kind in AdapterKind}
_MODEL_SHAPE = ("num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules")
_RECORDED = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "num_virtual_tokens", "peft_type",
    "peft_version", "revision", "task_type", *_MODEL_SHAPE,
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    "prompt_tuning_init_state_dict_path", "prompt_tuning_init_task", "num_ranks", "num_tasks",
    "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout",
    "prefix_projection", "init_weights", "num_frozen_tokens",
    "cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask", "opt_weighted_loss_type", "opt_loss_decay_factor",
    "opt_projection_epsilon", "opt_projection_format_epsilon",
})  # fmt: skip
"""Keys that PEFT writes for the six kinds. Most describe training, which is over: PEFT saves what the encoder made."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The parts of adapter_config.json that say what the tensors are. None: the file does not say.

    `num_heads` and `token_dim` are of the key-value cache for KV kinds, of the attention for the others.
    """

    kind: AdapterKind
    num_virtual_tokens: int
    num_layers: int | None
    num_heads: int | None
    token_dim: int | None
    num_tasks: int
    num_ranks: int
    base_name: str | None
    peft_version: str | None
    warnings: tuple[str, ...]


def parse_peft_config(data: bytes, max_virtual_tokens: int) -> PeftConfig:
    """Return what adapter_config.json says. Raises Malformed with the reason."""
    config = parse_object(data, max_bytes=MAX_BYTES)
    kind = _kind(config.get("peft_type"))
    warnings = _task_type(config.get("task_type"))
    if config.get("modules_to_save"):
        raise Malformed("modules_to_save is not empty: the base model is frozen, no other weights can be replaced")
    unknown = sorted(config.keys() - _RECORDED)
    if unknown:
        warnings += (f"adapter_config.json has keys that change nothing here: {shown(', '.join(unknown))}",)
    num_virtual_tokens = _virtual_tokens(config, kind, max_virtual_tokens)
    multitask = kind is AdapterKind.MULTITASK_PROMPT_TUNING
    return PeftConfig(
        kind=kind,
        num_virtual_tokens=num_virtual_tokens,
        num_layers=typed.integer(config, "num_layers", 1, _MAX_DIM),
        num_heads=typed.integer(config, "num_attention_heads", 1, _MAX_DIM),
        token_dim=typed.integer(config, "token_dim", 1, _MAX_DIM),
        num_tasks=(typed.integer(config, "num_tasks", 1, MAX_TASKS) or 1) if multitask else 0,
        num_ranks=(typed.integer(config, "num_ranks", 1, MAX_RANKS) or 1) if multitask else 0,
        base_name=typed.text(config, "base_model_name_or_path", 4096),
        peft_version=typed.text(config, "peft_version", 64),
        warnings=warnings,
    )


def _kind(peft_type: Any) -> AdapterKind:
    if isinstance(peft_type, str) and peft_type in _KINDS:
        return _KINDS[peft_type]
    served = ", ".join(_KINDS)
    if peft_type is None:
        raise Malformed(f"it has no peft_type; served are {served}")
    if peft_type == "ADAPTION_PROMPT":
        raise Malformed(
            "peft_type ADAPTION_PROMPT gates an attention of its own inside the layers and has no virtual tokens; "
            f"served are {served}"
        )
    raise Malformed(f"peft_type {shown(peft_type)} is not prompt learning; served are {served}")


def _task_type(task_type: Any) -> tuple[str, ...]:
    if task_type == "CAUSAL_LM":
        return ()
    if task_type is None:
        return ("task_type is null, taken as CAUSAL_LM; PEFT itself ignores the virtual tokens of such an adapter",)
    raise Malformed(f"task_type {shown(task_type)} is not CAUSAL_LM: this server generates text with a decoder")


def _virtual_tokens(config: dict[str, Any], kind: AdapterKind, limit: int) -> int:
    tokens = config.get("cpt_token_ids") if kind is AdapterKind.CPT else None
    if tokens is not None and not isinstance(tokens, list):
        raise Malformed("cpt_token_ids is not a list")
    if config.get("num_virtual_tokens") is None:
        raise Malformed("it has no num_virtual_tokens")
    count = typed.integer(config, "num_virtual_tokens", 1, limit)
    assert count is not None
    if tokens is not None and len(tokens) != count:
        raise Malformed(f"num_virtual_tokens is {count}, but cpt_token_ids lists {len(tokens)}")
    return count
