"""Small folders for tests of the API: a base model that spells bytes, and adapters that fit it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

HIDDEN, LAYERS, KV_HEADS, HEAD_DIM, CONTEXT = 8, 2, 1, 4, 1024
KV_COLUMNS = LAYERS * 2 * KV_HEADS * HEAD_DIM
EOS, BOS, BOS_TOKEN = 256, 257, "<|im_start|>"
VOCABULARY = 258

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(folder: Path, *, bos: bool = False) -> Path:
    """Write a model folder whose token ids are the bytes of the text; 256 and 257 are special.

    `bos`: its tokenizer begins every text with 257.
    """
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD_DIM,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCABULARY,
        "eos_token_id": EOS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = _tokenizer()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, BOS)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
    } | ({"bos_token": BOS_TOKEN} if bos else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    embedding = np.zeros((VOCABULARY, HIDDEN), dtype=np.float32)
    save_file({"model.embed_tokens.weight": embedding}, str(folder / "model.safetensors"))
    return folder


def _tokenizer() -> Tokenizer:
    vocabulary = {character: byte for byte, character in byte_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    return tokenizer


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        alphabet.setdefault(byte, chr(256 + sum(other not in plain for other in range(byte))))
    return alphabet


def soft_prompt(rows: int = 4, *, value: float = 0.5, hidden: int = HIDDEN) -> dict[str, bytes]:
    """The files of a soft prompt, as PEFT writes them."""
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": rows, "token_dim": hidden}
    table = np.full((rows, hidden), value, dtype=np.float32)
    return _files(config, table)


def prefix(rows: int = 4, *, value: float = 0.5) -> dict[str, bytes]:
    """The files of a prefix, as PEFT writes them."""
    config = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": rows}
    return _files(config, np.full((rows, KV_COLUMNS), value, dtype=np.float32))


def templated(template: str, rows: int = 4) -> dict[str, bytes]:
    """The files of a P-Tuning adapter with a template."""
    config = {"peft_type": "P_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": rows}
    files = _files(config, np.full((rows, HIDDEN), 0.5, dtype=np.float32))
    return {**files, "waybill.json": json.dumps({"version": 1, "template": template}).encode()}


def multitask(tasks: int, rows: int = 4) -> dict[str, bytes]:
    """The files of a multitask soft prompt with one low-rank matrix per task."""
    config = {
        "peft_type": "MULTITASK_PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": rows,
        "num_tasks": tasks,
        "num_ranks": 1,
    }
    tensors = {
        "prompt_embeddings": np.full((rows, HIDDEN), 0.5, dtype=np.float32),
        "prefix_task_cols": np.ones((tasks, rows, 1), dtype=np.float32),
        "prefix_task_rows": np.ones((tasks, 1, HIDDEN), dtype=np.float32),
    }
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(tensors)}


def _files(config: dict[str, object], table: np.ndarray) -> dict[str, bytes]:
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save({"prompt_embeddings": table}),
    }


def zipped(files: dict[str, bytes], top: str = "") -> bytes:
    """The files as one zip, with a folder `top` around them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{top}{name}", data)
    return buffer.getvalue()
