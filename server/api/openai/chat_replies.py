"""What `POST /v1/chat/completions` answers: the whole reply, and the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from server.api.openai.chat import ChatRequest
from server.api.openai.writer import (
    LOWEST,
    FinishWord,
    OpenAIWriter,
    PromptLogprobs,
    ReplyHead,
    finish_word,
    prompt_logprobs_object,
    stop_word,
)
from server.service.choice import Choice
from server.service.exchange import Delta, TokenLogprob
from server.service.run import Run
from server.service.tokenizer import Tokenizer


class TopLogprob(BaseModel):
    """One candidate. `bytes` are its own: a token may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """One token, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of a message."""

    content: list[ChatLogprob]
    refusal: None


class ReplyMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One choice."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord
    stop_reason: str | int | None
    token_ids: list[int] = []


class ChatReply(ReplyHead):
    """The reply of `POST /v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatWriter(OpenAIWriter):
    """Writes one run's reply or events."""

    def __init__(self, run: Run, body: ChatRequest, tokenizer: Tokenizer, *, request_id: str, model: str) -> None:
        name = "chat.completion"
        super().__init__(run, body, identifier=f"chatcmpl-{request_id}", whole=name, chunk=f"{name}.chunk", model=model)
        self._request = body
        self._tokenizer = tokenizer

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a finished choice with its message."""
        written: dict[str, Any] = {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": finish_word(choice.finish),
            "stop_reason": stop_word(choice.finish, choice.stop_reason),
        }
        if self._request.return_token_ids:
            written["token_ids"] = choice.token_ids
        return written

    def beside(self) -> dict[str, Any]:
        """Return what was asked for of the prompt: all choices have the same."""
        first, body = self._run.choices[0], self._request
        told: dict[str, Any] = {}
        if body.return_token_ids:
            told["prompt_token_ids"] = list(first.prompt_token_ids)
        if body.prompt_logprobs is not None:
            told["prompt_logprobs"] = prompt_logprobs_object(first.prompt_logprobs, body.prompt_logprobs)
        return told

    def first(self, choice: Choice) -> dict[str, Any] | None:
        """Return whose turn it is."""
        return self._delta(choice.index, {"role": "assistant", "content": "", "refusal": None})

    def gained(self, delta: Delta) -> Iterable[dict[str, Any]]:
        """Return a delta's text and tokens, and then, by itself, why the choice ended."""
        if delta.text or delta.token_ids:
            written = self._delta(delta.index, {"content": delta.text})
            written["logprobs"] = self._logprobs(delta.logprobs)
            if self._request.return_token_ids:
                written["token_ids"] = list(delta.token_ids)
            if delta.text or self._request.logprobs or self._request.return_token_ids:
                yield written
        if delta.finish is not None:
            ended = self._delta(delta.index, {})
            ended["finish_reason"] = finish_word(delta.finish)
            ended["stop_reason"] = stop_word(delta.finish, delta.stop_reason)
            yield ended

    def _delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        return {"content": [self._entry(entry) for entry in entries], "refusal": None}

    def _entry(self, entry: TokenLogprob) -> dict[str, Any]:
        return {**self._candidate(entry), "top_logprobs": [self._candidate(candidate) for candidate in entry.top]}

    def _candidate(self, entry: TokenLogprob) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(entry.token_id)
        return {"token": entry.token, "logprob": max(entry.logprob, LOWEST), "bytes": list(data)}
