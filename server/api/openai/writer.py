"""What the replies of both OpenAI routes share: their head, their usage, why a choice ended, the events of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from server.api.errors import error_body
from server.api.openai.fields import OpenAIFields
from server.api.replies import AdapterReply, adapter_reply, write_json
from server.core import FinishReason
from server.errors import WaybillError
from server.service.choice import Choice
from server.service.exchange import Delta, TokenLogprob, Usage
from server.service.run import Run

LOWEST = -9999.0
"""What stands for minus infinity, which JSON cannot say."""

FinishWord = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens, those that an earlier request had computed; beside them, the adapter's virtual tokens."""

    cached_tokens: int
    virtual_tokens: int


class UsageReply(BaseModel):
    """Tokens. Virtual tokens are no part of `prompt_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(BaseModel):
    """One candidate for a token of the prompt. `rank` counts from 1; null where it is not among the likeliest told."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ReplyHead(BaseModel):
    """What both replies begin with."""

    id: str
    created: int
    model: str
    adapter: AdapterReply | None
    usage: UsageReply


class OpenAIWriter(ABC):
    """Writes one run in OpenAI's words. A subclass says what a choice looks like, whole and in a stream."""

    ends_with_done = True

    def __init__(self, run: Run, body: OpenAIFields, *, identifier: str, whole: str, chunk: str, model: str) -> None:
        """`whole` and `chunk` are the `object` of a reply and of a stream's event; `identifier` is its `id`."""
        self._run = run
        self._body = body
        self._head: dict[str, Any] = {
            "id": identifier,
            "object": whole,
            "created": run.created,
            "model": model,
            "adapter": None if run.adapter is None else adapter_reply(run.adapter),
        }
        self._chunk_start = write_json({**self._head, "object": chunk})[:-1] + ',"choices":['
        self._begun: set[int] = set()

    def whole(self) -> dict[str, Any]:
        """Return the unstreamed reply."""
        choices = [self.choice(choice) for choice in self._run.choices]
        return {**self._head, "choices": choices, "usage": usage_object(self._run.usage), **self.beside()}

    def headers(self) -> dict[str, str]:
        """Return none: all is in the reply."""
        return {}

    def frames(self, deltas: list[Delta]) -> Iterable[str]:
        """Return the events of these deltas, one choice in each."""
        return [self._chunk([choice]) for delta in deltas for choice in self._told(delta)]

    def last_frames(self) -> Iterable[str]:
        """Return the event of the usage, where it was asked for."""
        return [self._chunk([], ends=True)] if self._body.include_usage else []

    def error_frame(self, error: WaybillError) -> str:
        """Return OpenAI's error object."""
        return write_json(error_body(error))

    @abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a finished choice."""

    @abstractmethod
    def first(self, choice: Choice) -> dict[str, Any] | None:
        """Return what is told of a choice before anything that it gained; None for nothing."""

    @abstractmethod
    def gained(self, delta: Delta) -> Iterable[dict[str, Any]]:
        """Return what is told of a delta."""

    def beside(self) -> dict[str, Any]:
        """Return what a whole reply tells beside its choices."""
        return {}

    def _told(self, delta: Delta) -> Iterable[dict[str, Any]]:
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            if (first := self.first(self._run.choices[delta.index])) is not None:
                yield first
        yield from self.gained(delta)

    def _chunk(self, choices: Sequence[dict[str, Any]], *, ends: bool = False) -> str:
        told = self._chunk_start + ",".join(map(write_json, choices)) + "]"
        if ends or self._body.continuous_usage:
            return f'{told},"usage":{write_json(usage_object(self._run.usage))}}}'
        return told + (',"usage":null}' if self._body.include_usage else "}")


def finish_word(finish: FinishReason | None) -> str | None:
    """Return OpenAI's word. It has none for time that ran out or a sequence that was ended: the text is cut short."""
    if finish is None:
        return None
    return "stop" if finish is FinishReason.STOP else "length"


def stop_word(finish: FinishReason | None, stop_reason: str | int | None) -> str | int | None:
    """Return the stop string or id that ended the text, or what else did that `finish_word` cannot say."""
    return str(finish) if finish in (FinishReason.TIMEOUT, FinishReason.ABORT) else stop_reason


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return the tokens of a call."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "virtual_tokens": usage.virtual_tokens,
        },
    }


def prompt_logprobs_object(entries: Sequence[TokenLogprob | None], top: int) -> list[dict[str, dict[str, Any]] | None]:
    """Return vLLM's `prompt_logprobs`: for each token of the prompt the candidates told, by id; None for the first."""
    return [None if entry is None else _candidates(entry, top) for entry in entries]


def _candidates(entry: TokenLogprob, top: int) -> dict[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    for rank, candidate in enumerate(entry.top[:top], start=1):
        told[str(candidate.token_id)] = _candidate(candidate, rank)
    told.setdefault(str(entry.token_id), _candidate(entry, None))
    return told


def _candidate(entry: TokenLogprob, rank: int | None) -> dict[str, Any]:
    return {"logprob": max(entry.logprob, LOWEST), "rank": rank, "decoded_token": entry.token}
