"""Tiny random models of many families, in float32 and with logits that vary: `tiny_model("llama")`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 300
CONTEXT = 512
WINDOW = 8

_BASIC: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _BASIC | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 16}  # heads together wider than the hidden size
_MHA = _BASIC | {"num_key_value_heads": 4}
_SLIDING = {"sliding_window": WINDOW}
_MIXED = _SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_OPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "word_embed_proj_dim": 32,
    "pad_token_id": 1,
}

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "llama_gqa3": ("LlamaConfig", _GROUPED | {"hidden_size": 48, "num_attention_heads": 6}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", _WIDE),
    "qwen3_moe": ("Qwen3MoeConfig", _WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "mistral": ("MistralConfig", _WIDE | _SLIDING),
    "mixtral": ("MixtralConfig", _GROUPED | _EXPERTS),
    "gemma": ("GemmaConfig", _WIDE),
    "gemma2": ("Gemma2Config", _WIDE | _MIXED | {"query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", _WIDE | _MIXED | {"query_pre_attn_scalar": 16}),
    "phi": ("PhiConfig", _MHA),
    "phi3": ("Phi3Config", _GROUPED | _SLIDING),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT2 | {"multi_query": True}),
    "gpt_neox": ("GPTNeoXConfig", _BASIC),
    "opt": ("OPTConfig", _OPT),
    "biogpt": ("BioGptConfig", _BASIC),
    "smollm3": ("SmolLM3Config", _GROUPED),
    "granite": ("GraniteConfig", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
    "olmo3": ("Olmo3Config", _GROUPED | _MIXED),
    "cohere2": ("Cohere2Config", _GROUPED | _MIXED | {"logit_scale": 1.0}),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "stablelm": ("StableLmConfig", _MHA),
    "nemotron": ("NemotronConfig", _GROUPED),
    "helium": ("HeliumConfig", _GROUPED | {"head_dim": 8}),
    "glm4": ("Glm4Config", _WIDE),
    "exaone4": ("Exaone4Config", _WIDE | _MIXED),
    "seed_oss": ("SeedOssConfig", _WIDE),
    "ministral": ("MinistralConfig", _WIDE | _SLIDING),
    "cwm": ("CwmConfig", _WIDE | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
    "gpt_oss": ("GptOssConfig", _WIDE | _MIXED | _EXPERTS),
}
"""Families that Waybill serves: name, configuration class, its arguments."""

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", _BASIC),
    "mpt": ("MptConfig", {"vocab_size": VOCAB_SIZE, "d_model": 32, "n_heads": 4, "n_layers": 2}),
    "gptj": ("GPTJConfig", _GPT2 | {"rotary_dim": 8}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global"], 2]],
            "max_position_embeddings": CONTEXT,
        },
    ),
    "codegen": ("CodeGenConfig", _GPT2 | {"rotary_dim": 8}),
    "xglm": (
        "XGLMConfig",
        {"vocab_size": VOCAB_SIZE, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    ),
    "mamba": ("MambaConfig", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "lfm2": ("Lfm2Config", _GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "bert": ("BertConfig", _BASIC | {"is_decoder": False}),
    "deepseek_v3": (
        "DeepseekV3Config",
        _MHA
        | {
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 2,
        },
    ),
    "t5": ("T5Config", {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
}
"""Families that Waybill refuses, in the same form."""


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """Make a random model of a family named in `SERVED` or `REFUSED`; `overrides` go to its configuration.

    Weights are larger than at the start of a training, so that logits differ clearly between tokens.
    """
    name, arguments = (SERVED | REFUSED)[family]
    config = getattr(transformers, name)(**(arguments | overrides))
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    embeddings = {id(model.get_input_embeddings().weight)}
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.mul_(8.0 if id(parameter) in embeddings or "wpe" in parameter_name else 4.0)
    return model
