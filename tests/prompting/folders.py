"""Tokenizer folders made on the spot, as models ship them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>", "<|end|>"]

CHATML = (
    "{% for message in messages %}{{ '<|turn|>' + message['role'] + '\n' + message['content'] | trim + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog. 12345 times, they said: naïve café, 東京, 🙂🙃!\n\n  indented",
    "Review: a film about nothing at all, and yet it moves.\nSentiment: good",
    "user assistant system turn end s unk <s> </s> <|turn|> <|end|> text text text",
] * 4


def byte_level(folder: Path, *, bos: bool = False, chat: str | None = CHATML, **config: Any) -> Path:
    """A GPT-2-like byte-level BPE; `bos` adds BOS by its post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _save(tokenizer, folder, {"chat_template": chat} | config)


def sentence_piece_like(folder: Path, **config: Any) -> Path:
    """A Llama-2-like BPE: a space is a letter, what has no token falls back to bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.encode("ascii", "ignore").decode() for text in TEXTS], trainer)
    source = json.loads(tokenizer.to_str())
    source["added_tokens"] = source["added_tokens"][: len(SPECIAL)]
    tokenizer = Tokenizer.from_str(json.dumps(source))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _save(tokenizer, folder, config)


def _save(tokenizer: Tokenizer, folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = {"__type": "AddedToken", "content": "</s>", "special": True, "normalized": False}
    names = {"bos_token": "<s>", "eos_token": eos, "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
