"""Read the base model's dimensions and digest from its Hugging Face folder, without loading a weight."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from server.core import BaseModel
from server.formats.headers import DTYPE_BITS, TensorInfo, read_header
from server.formats.strict_json import Malformed

MAX_HEADER_BYTES = 100_000_000
DIGEST_EMBEDDING_BYTES = 1024 * 1024

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_HEAD_DIM_DEFAULTS = {
    "gemma": 256, "gemma2": 256, "gemma3_text": 256, "glm": 128, "glm4": 128, "gpt_oss": 64, "helium": 128,
    "qwen3": 128,
}  # fmt: skip
"""Where transformers' own default is a number and not hidden size / heads."""

_CONTEXT_DEFAULTS: dict[str, dict[str, Any]] = {"bloom": {"seq_length": 2048}}
"""Families whose config need not state a length: ALiBi has no table of positions. The length it was trained on."""

_VOLATILE = ("_name_or_path", "transformers_version")
"""Keys of config.json that change on a re-save of the same model."""

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "embeddings.weight",
    "tok_embeddings.weight",
)  # fmt: skip
"""Endings of the input embedding's name; over 30 decoder families use one of these."""


class ModelFolderError(ValueError):
    """The folder holds no base model that this server can read; the message says what is missing."""


def read_base_model(folder: Path, name: str | None = None) -> BaseModel:
    """Return what the house knows of the model in `folder`; `name` is the folder's own name unless given.

    Raises ModelFolderError when the folder is no Hugging Face model with safetensors weights.
    """
    config = _read_json(folder, "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise ModelFolderError(f"{folder / 'config.json'} names no model_type")
    heads = _number(config, _HEADS, folder)
    hidden = _number(config, _HIDDEN, folder)
    vocab_size = _number(config, ("vocab_size",), folder)
    return BaseModel(
        name=name or folder.resolve().name,
        family=family,
        digest=_digest(folder, config),
        vocab_size=vocab_size,
        # OPT may embed at another width and project; a soft prompt stands where the embeddings do.
        hidden_size=_optional(config, ("word_embed_proj_dim",)) or hidden,
        num_layers=_number(config, _LAYERS, folder),
        num_kv_heads=_kv_heads(config, heads),
        head_dim=_optional(config, ("head_dim",)) or _HEAD_DIM_DEFAULTS.get(family) or hidden // heads,
        context_length=_number({**_CONTEXT_DEFAULTS.get(family, {}), **config}, _CONTEXT, folder),
        eos_token_ids=_eos(folder, config, vocab_size),
    )


def _kv_heads(config: dict[str, Any], heads: int) -> int:
    """Multi-query models say so with a flag, and Falcon's flag outranks its count unless it is of the newer make."""
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    return _optional(config, _KV_HEADS) or heads


def _eos(folder: Path, config: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """The generation config's end-of-sequence ids, else the config's, without repeats and ids that cannot come."""
    generation = _read_json(folder, "generation_config.json", optional=True)
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found = tuple(dict.fromkeys(item for item in ids if type(item) is int and 0 <= item < vocab_size))
        if found:
            return found
    return ()


def _number(config: dict[str, Any], keys: tuple[str, ...], folder: Path) -> int:
    value = _optional(config, keys)
    if value is None:
        raise ModelFolderError(
            f"{folder / 'config.json'} (model_type {config['model_type']!r}) has no positive {' or '.join(keys)}: "
            "only decoder-only transformers that state their size and context length can be served"
        )
    return value


def _optional(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = config.get(key)
        if type(value) is int and value > 0:
            return value
    return None


def _read_json(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        if optional:
            return {}
        raise ModelFolderError(f"{folder} is no model folder: it has no {name}") from error
    except OSError as error:
        raise ModelFolderError(f"{folder / name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelFolderError(f"{folder / name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{folder / name} is not a JSON object")
    return value


def _digest(folder: Path, config: dict[str, Any]) -> str:
    """sha256 over config, tokenizer files, every tensor's name, dtype and shape, and the embedding's first MiB.

    How the weights are split over files does not count.
    """
    sha = hashlib.sha256()
    kept = {key: value for key, value in config.items() if key not in _VOLATILE}
    _add(sha, "config.json", json.dumps(kept, sort_keys=True).encode())
    for name in _TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            _add(sha, name, path.read_bytes())
    tensors = _tensors(folder)
    described = [[name, info.dtype, info.shape] for name, (_, info) in sorted(tensors.items())]
    _add(sha, "tensors", json.dumps(described).encode())
    path, info = _embedding(folder, tensors)
    with path.open("rb") as file:
        file.seek(info.offset)
        _add(sha, info.name, file.read(min(info.num_bytes, DIGEST_EMBEDDING_BYTES)))
    return f"sha256:{sha.hexdigest()}"


def _add(sha: hashlib._Hash, name: str, data: bytes) -> None:
    sha.update(f"{name}\0{len(data)}\0".encode())
    sha.update(data)


def _tensors(folder: Path) -> dict[str, tuple[Path, TensorInfo]]:
    """Every tensor of the model, by name, with the file that holds it."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        weight_map = _read_json(folder, index.name).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ModelFolderError(f"{index} does not map tensors to files of its folder")
        files = sorted(folder / name for name in names)
    else:
        raise ModelFolderError(f"{folder} is no model folder: it has no model.safetensors, whole or in shards")
    found: dict[str, tuple[Path, TensorInfo]] = {}
    for path in files:
        try:
            header = read_header(path, max_bytes=MAX_HEADER_BYTES, dtypes=frozenset(DTYPE_BITS))
        except (Malformed, OSError) as error:
            raise ModelFolderError(f"{path} cannot be used: {error}") from error
        found.update({name: (path, info) for name, info in header.items()})
    return found


def _embedding(folder: Path, tensors: dict[str, tuple[Path, TensorInfo]]) -> tuple[Path, TensorInfo]:
    for ending in _EMBEDDINGS:
        names = sorted(name for name in tensors if name == ending or name.endswith(f".{ending}"))
        if names:
            return tensors[names[0]]
    raise ModelFolderError(f"{folder} has no input embedding among its {len(tensors)} tensors")
