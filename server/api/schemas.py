"""What `POST /v1/generate` takes: names, types and bounds of every field."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Self

from pydantic import Field, model_validator

from server.api.fields import (
    MAX_TOKENS,
    ChatMessage,
    FieldTexts,
    GenerationFields,
    PromptField,
    plain_messages,
    prompts_of,
)
from server.api.structure import wanted_structure
from server.service.exchange import GenerateCommand

Label = Annotated[str, Field(min_length=1, max_length=256)]

BESIDE_LABELS = frozenset(
    {"adapter", "prompt", "messages", "fields", "task", "timeout_s", "labels", "add_special_tokens", "cache_salt"}
)
"""Fields that say something where the answer is one of given labels; all others are about drawing tokens."""


class GenerateRequest(GenerationFields):
    """The body of `POST /v1/generate`. Exactly one of `prompt`, `messages` and `fields` is given."""

    prompt: PromptField | None = Field(
        None, description="Text is tokenised as the tokenizer does by default; ids lie in the vocabulary."
    )
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)] | None = Field(
        None,
        description=(
            "A conversation, rendered by the base model's chat template. Roles: `system`, `user`, "
            "`assistant`. Not for adapters with a template."
        ),
    )
    fields: FieldTexts | None = Field(None, description="What fills the adapter's template, by field name.")
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description=(
            "Tokens to generate at most; 0 only with `prompt_logprobs`. Default: 256, or what the context leaves."
        ),
    )
    max_new_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="Another name of `max_tokens`.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Log-probability of each token, and of the likeliest *k*, before penalties and filters.",
    )
    labels: Annotated[list[Label], Field(min_length=1, max_length=256)] | None = Field(
        None, description="The answer is the likeliest of these different texts; nothing is drawn."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        given = [name for name in ("prompt", "messages", "fields") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of prompt, messages and fields is needed; got {' and '.join(given) or 'none'}"
            )
        if None not in (self.max_tokens, self.max_new_tokens) and self.max_tokens != self.max_new_tokens:
            raise ValueError("max_tokens and max_new_tokens are two names of one field and differ")
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs are told in a whole reply only, not in a stream")
        wanted_structure(self.response_format, self.structured_outputs)
        if self.labels is not None:
            self._require_only_labels(self.labels)
        return self

    def _require_only_labels(self, labels: list[str]) -> None:
        if len(set(labels)) < len(labels):
            raise ValueError("labels: each is given once")
        for name in sorted(self.model_fields_set - BESIDE_LABELS):
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if getattr(self, name) != default:
                raise ValueError(f"{name} cannot be sent with labels: nothing is drawn, and the answer is whole")

    def command(self) -> GenerateCommand:
        """Return the request as the service takes it."""
        return dataclasses.replace(
            self.common_command(self.logprobs),
            prompts=prompts_of(self.prompt),
            messages=plain_messages(self.messages),
            fields=self.fields,
            max_tokens=self.max_new_tokens if self.max_tokens is None else self.max_tokens,
            structure=wanted_structure(self.response_format, self.structured_outputs),
            labels=tuple(self.labels or ()),
        )
