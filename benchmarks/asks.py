"""What is asked of a server, and how each server wants it put: prompts, adapters, JSON bodies."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

_FIRST = 100
"""Ids below are special tokens and control characters in the models that are measured."""

NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: always greedy, streamed, and exactly `new_tokens` long.

    `adapter` names one of ours; `embeddings` are base64 of what torch.save makes of a prompt's rows, soft prompt first.
    `schema` is a JSON schema that the text must match, and that no text of `new_tokens` tokens comes to the end of.
    """

    prompt: tuple[int, ...]
    new_tokens: int = NEW_TOKENS
    adapter: str | None = None
    embeddings: str | None = None
    schema: str | None = None


def prompts(count: int, length: int, vocab_size: int, seed: object) -> list[tuple[int, ...]]:
    """Return random prompts, no two alike, so that no server can reuse what it computed for another."""
    draw = random.Random(repr(seed))
    return [tuple(draw.choices(range(_FIRST, vocab_size), k=length)) for _ in range(count)]


def waybill_body(ask: Ask) -> bytes:
    """Put it as `POST /v1/generate` takes it."""
    fields: dict[str, Any] = {"prompt": ask.prompt, "max_tokens": ask.new_tokens, "stream": True, "ignore_eos": True}
    if ask.adapter is not None:
        fields["adapter"] = ask.adapter
    if ask.schema is not None:
        fields["structured_outputs"] = {"json": ask.schema}
        del fields["ignore_eos"]
    return json.dumps(fields).encode()


def completions_body(ask: Ask) -> bytes:
    """Put it as vLLM's `POST /v1/completions` takes it."""
    fields: dict[str, Any] = {
        "model": "base",
        "max_tokens": ask.new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    if ask.embeddings is not None:
        fields["prompt_embeds"] = ask.embeddings
    else:
        fields["prompt"] = ask.prompt
    return json.dumps(fields).encode()
