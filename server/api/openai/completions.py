"""What `POST /v1/completions` takes: names, types and bounds of every field."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from server.api.fields import MAX_TOKENS, FieldTexts, PromptField, only, prompts_of
from server.api.openai.fields import OpenAIFields
from server.errors import InvalidRequest
from server.service.exchange import GenerateCommand


class CompletionRequest(OpenAIFields):
    """The body of `POST /v1/completions`. Exactly one of `prompt` and `fields` is given."""

    prompt: PromptField | None = Field(None, description="As in `/v1/generate`.")
    fields: FieldTexts | None = Field(None, description="What fills the adapter's template.")
    suffix: Annotated[
        None, only(None, because="this server writes what follows a prompt, not what stands before a suffix")
    ] = Field(None, description="This server writes what follows a prompt.")
    max_tokens: int = Field(
        16, ge=0, le=MAX_TOKENS, description="Tokens to generate at most; 0 only with `echo` or `prompt_logprobs`."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Log-probability of each token, and of the likeliest *k*; with `echo`, the prompt's too.",
    )
    echo: bool = Field(
        False,
        description=(
            "Begin the text with the prompt, as the model read it: an adapter's template is in it, "
            "virtual tokens are not."
        ),
    )
    best_of: int | None = Field(None, ge=1, le=16, description="Every choice is told; none is thrown away.")

    def command(self, adapter: str | None) -> GenerateCommand:
        """Return the request as the service takes it. Raises InvalidRequest."""
        if (self.prompt is None) is (self.fields is None):
            raise InvalidRequest("exactly one of prompt and fields is needed", param="prompt")
        if self.best_of not in (None, self.n):
            raise InvalidRequest(
                f"best_of must be n ({self.n}): choices are not ranked and thrown away", param="best_of"
            )
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise InvalidRequest("max_tokens is 0, which is for echo or prompt_logprobs alone", param="max_tokens")
        return dataclasses.replace(
            self.shared_command(adapter=adapter, logprobs=self.logprobs),
            prompts=prompts_of(self.prompt),
            fields=self.fields,
            max_tokens=self.max_tokens,
            prompt_logprobs=self._scored(),
        )

    def _scored(self) -> int | None:
        """Return how many of the likeliest tokens to score in the prompt, None where nothing of it is told.

        Without a token of its own a sequence has nothing else to do.
        """
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None, 0 if self.max_tokens == 0 else None]
        return max((top for top in asked if top is not None), default=None)
