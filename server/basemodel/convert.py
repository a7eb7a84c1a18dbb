"""A Llama-family GGUF file turned into the model folder that transformers and tokenizers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from server.basemodel.errors import BaseModelError
from server.basemodel.gguf import FloatArray, GGUFFile
from server.basemodel.weights import write_bfloat16

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
FILES = ("config.json", "generation_config.json", WEIGHTS, TOKENIZER, "tokenizer_config.json")

_WHOLE_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SPECIAL_TOKEN = 3  # GGUF's token type "control"


def convert(source: Path, target: Path) -> None:
    """Write the files named in `FILES` into the existing folder `target`, weights in bfloat16.

    Raises:
        BaseModelError: the file is not a Llama-family model with the SmolLM tokenizer, or holds unknown tensors.
    """
    file = GGUFFile(source)
    family, splitting = file.metadata["general.architecture"], file.metadata.get("tokenizer.ggml.pre")
    if (family, splitting) != ("llama", "smollm"):
        raise BaseModelError(f"{source} is a {family} model with {splitting} tokenizer; expected llama with smollm")
    config = model_config(file)
    _write_json(target / "config.json", config)
    _write_json(target / "generation_config.json", {k: config[k] for k in _TOKEN_IDS})
    _write_json(target / "tokenizer_config.json", tokenizer_config(file))
    tokenizer(file).save(str(target / TOKENIZER))
    weights = Weights(file, config["num_attention_heads"], config["num_key_value_heads"])
    write_bfloat16(target / WEIGHTS, weights.shapes, weights.tensor)


def unpermute(weight: FloatArray, num_heads: int) -> FloatArray:
    """Put the rows of a query or key projection back into the order that transformers' rotary embedding expects.

    GGUF's Llama files interleave the two halves of each head: row `2i + j` of a head is row `j * head_dim/2 + i` here.
    `weight` is [num_heads * head_dim, hidden].
    """
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


class Weights:
    """The tensors of one GGUF file under the names that transformers gives them.

    `shapes` maps each name to its shape.
    """

    def __init__(self, file: GGUFFile, num_heads: int, num_kv_heads: int) -> None:
        self._file = file
        self._heads = {"attn_q": num_heads, "attn_k": num_kv_heads}
        self._sources = {_transformers_name(name): name for name in file.names}
        self.shapes = {name: file.shape(source) for name, source in self._sources.items()}

    def tensor(self, name: str) -> FloatArray:
        """Return the weight that transformers calls `name`."""
        source = self._sources[name]
        weight = self._file.tensor(source)
        part = source.split(".")[-2]
        return unpermute(weight, self._heads[part]) if part in self._heads else weight


def _transformers_name(source: str) -> str:
    if source in _WHOLE_MODEL:
        return _WHOLE_MODEL[source]
    match source.split("."):
        case ["blk", layer, part, "weight"] if part in _PER_LAYER:
            return f"model.layers.{layer}.{_PER_LAYER[part]}.weight"
    raise BaseModelError(f"tensor {source} has no place in a Llama model")


def model_config(file: GGUFFile) -> dict[str, Any]:
    """Return the contents of config.json."""
    data = file.metadata
    hidden, heads = data["llama.embedding_length"], data["llama.attention.head_count"]
    rope_theta = data["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": data["llama.feed_forward_length"],
        "num_hidden_layers": data["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": data["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "max_position_embeddings": data["llama.context_length"],
        # Stored as float32; the decimal that it stands for has few digits.
        "rms_norm_eps": float(f"{data['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        # transformers 4 reads rope_theta and torch_dtype, transformers 5 rope_parameters and dtype.
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "initializer_range": 0.02,
        "tie_word_embeddings": "output.weight" not in file.names,
        "vocab_size": data["llama.vocab_size"],
        "bos_token_id": data["tokenizer.ggml.bos_token_id"],
        "eos_token_id": data["tokenizer.ggml.eos_token_id"],
        "pad_token_id": data["tokenizer.ggml.padding_token_id"],
        "use_cache": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json, the chat template included."""
    data = file.metadata
    tokens = data["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[data["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[data["tokenizer.ggml.eos_token_id"]],
        # SmolLM2 pads with its end token: whoever trains must mask padding by position, never by id.
        "pad_token": tokens[data["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[data["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": data["llama.context_length"],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": data["tokenizer.chat_template"],
    }


def tokenizer(file: GGUFFile) -> Tokenizer:
    """Return the byte-level BPE tokenizer that the metadata describes."""
    data = file.metadata
    tokens, kinds = data["tokenizer.ggml.tokens"], data["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in data["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=merges))
    # GGUF only names this step ("smollm"): every digit is a token of its own.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    made.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL_TOKEN]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
