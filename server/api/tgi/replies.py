"""The shapes of TGI's and LoRAX's replies. Each server's clients read the fields they know and pass over the rest."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from server.api.replies import AdapterReply

Finish = Literal["length", "eos_token", "stop_sequence"]


class PrefillToken(BaseModel):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class AlternativeToken(BaseModel):
    """A candidate, as LoRAX tells it."""

    id: int
    text: str
    logprob: float


class TopToken(AlternativeToken):
    """A candidate, as TGI tells it."""

    special: bool


class TgiToken(TopToken):
    """A token of the answer; the texts of those that are not special join to the generated text."""

    skipped: Literal[False]
    alternative_tokens: list[AlternativeToken] = []


class TgiDetails(BaseModel):
    """How the text ended, and its tokens. `seed` is null where nothing was drawn."""

    finish_reason: Finish
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: Literal[0]
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[TgiToken]
    top_tokens: list[list[TopToken]] = []
    adapter: AdapterReply | None


class TgiReply(BaseModel):
    """The reply of `POST /generate`; `POST /` puts it into a list."""

    generated_text: str
    details: TgiDetails | None = None


class TgiStreamDetails(BaseModel):
    """How a streamed text ended. `input_length` is TGI's name of `prompt_tokens`."""

    finish_reason: Finish
    input_length: int
    prompt_tokens: int
    generated_tokens: int
    seed: int | None
    adapter: AdapterReply | None


class TgiEvent(BaseModel):
    """One event of a stream; the last has the whole text."""

    index: int
    token: TgiToken
    top_tokens: list[TopToken] = []
    generated_text: str | None
    details: TgiStreamDetails | None
