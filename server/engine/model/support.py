"""Which base models cannot be served, told from their configuration, with the reason."""

from __future__ import annotations

from typing import Any


class UnsupportedModel(Exception):
    """The base model cannot be served correctly; the message names the family and the reason."""


_OWN_ATTENTION = (
    "its attention does not go through transformers' attention interface, so prefixes and the paged KV memory "
    "would be ignored without an error"
)
_STATE = (
    "it has recurrent, state-space or convolution layers, whose state is no KV: an adapter's prefix cannot be shared"
)
_SHARED_KV = "its layers share keys and values or differ in their shape, and the KV memory has one shape for all layers"
_LATENT = "its attention (MLA) has keys and values of different width, and the KV memory has one width for both"
_ENCODER = "it is an encoder-decoder, and prefixes are made for causal decoders"

_FAMILIES = (
    dict.fromkeys(("bloom", "falcon", "mpt", "gptj", "gpt_neo", "codegen", "xglm"), _OWN_ATTENTION)
    | dict.fromkeys(
        (
            *("mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "falcon_h1", "zamba", "zamba2", "rwkv", "xlstm"),
            *("recurrent_gemma", "nemotron_h", "qwen3_next", "olmo_hybrid", "kimi_linear"),
        ),
        _STATE,
    )
    | dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _SHARED_KV)
)
"""Families known by name; others show in their configuration, in a trial forward, or in the start-up check."""

_LAYER_TYPES = {
    "full_attention": None,
    "sliding_attention": None,
    "linear_attention": _STATE,
    "mamba": _STATE,
    "conv": _STATE,
    "recurrent": _STATE,
    "hybrid": _STATE,
    "hybrid_sliding": _STATE,
    "moe": _STATE,
}


def refuse(family: str, reason: str) -> UnsupportedModel:
    """Return the exception that names the family and the reason."""
    return UnsupportedModel(f"base models of the family {family!r} cannot be served: {reason}")


def require_supported_config(config: Any) -> None:
    """Raise UnsupportedModel when the `PretrainedConfig` alone shows that the model cannot be served."""
    family = config.model_type
    if reason := _FAMILIES.get(family) or _reason(config.get_text_config(decoder=True)):
        raise refuse(family, reason)
    if getattr(config, "is_encoder_decoder", False):
        raise refuse(family, _ENCODER)


def _reason(config: Any) -> str | None:
    """Return why the text model of this configuration cannot be served, or None."""
    for kind in sorted(set(getattr(config, "layer_types", None) or ())):
        other = f"it has layers of the type {kind!r}, which attend to other keys than causal or sliding attention does"
        if reason := _LAYER_TYPES.get(kind, other):
            return reason
    if getattr(config, "num_kv_shared_layers", 0):
        return _SHARED_KV
    if getattr(config, "kv_lora_rank", None):
        return _LATENT
    return None
