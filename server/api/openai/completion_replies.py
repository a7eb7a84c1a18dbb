"""What `POST /v1/completions` answers: the whole reply, and the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from server.api.openai.completions import CompletionRequest
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


class CompletionLogprobs(BaseModel):
    """Token by token: its text, its log-probability, those of the likeliest, and where in the choice's text it begins.

    A token that is no whole character has the text `bytes:\\x…`. The prompt's first token has no log-probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One choice; prompt p's choice c has the index `p * n + c`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishWord | None
    stop_reason: str | int | None
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []
    prompt_logprobs: PromptLogprobs = []


class CompletionReply(ReplyHead):
    """The reply of `POST /v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class CompletionWriter(OpenAIWriter):
    """Writes one run's reply or events."""

    def __init__(self, run: Run, body: CompletionRequest, tokenizer: Tokenizer, *, request_id: str, model: str) -> None:
        name = "text_completion"
        super().__init__(run, body, identifier=f"cmpl-{request_id}", whole=name, chunk=name, model=model)
        self._request = body
        self._tokenizer = tokenizer
        self._told_tokens = {choice.index: _Tokens(tokenizer, body) for choice in run.choices}

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a finished choice, the prompt before it where it is echoed."""
        body = self._request
        text = self._prompt_text(choice) + choice.text if body.echo else choice.text
        written = self._written(choice.index, text, None, choice.finish, choice.stop_reason)
        if body.logprobs is not None:
            entries = [*self._prompt_entries(choice), *zip(choice.token_ids, choice.logprobs, strict=True)]
            written["logprobs"] = self._told_tokens[choice.index].told(entries)
        if body.prompt_logprobs is not None:
            written["prompt_logprobs"] = prompt_logprobs_object(choice.prompt_logprobs, body.prompt_logprobs)
        if body.return_token_ids:
            written |= {"token_ids": choice.token_ids, "prompt_token_ids": list(choice.prompt_token_ids)}
        return written

    def first(self, choice: Choice) -> dict[str, Any] | None:
        """Return the prompt, where it is echoed or its ids are told."""
        body = self._request
        if not (body.echo or body.return_token_ids):
            return None
        written = self._written(choice.index, self._prompt_text(choice) if body.echo else "", None, None, None)
        if body.logprobs is not None:
            written["logprobs"] = self._told_tokens[choice.index].told(self._prompt_entries(choice))
        if body.return_token_ids:
            written |= {"token_ids": [], "prompt_token_ids": list(choice.prompt_token_ids)}
        return written

    def gained(self, delta: Delta) -> Iterable[dict[str, Any]]:
        """Return a delta's text, and its tokens where they are told."""
        written = self._written(delta.index, delta.text, None, delta.finish, delta.stop_reason)
        if self._request.logprobs is not None:
            entries = list(zip(delta.token_ids, delta.logprobs, strict=True))
            written["logprobs"] = self._told_tokens[delta.index].told(entries)
        if self._request.return_token_ids:
            written["token_ids"] = list(delta.token_ids)
        return (written,)

    def _written(
        self, index: int, text: str, logprobs: None, finish: Any, stop_reason: str | int | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_word(finish),
            "stop_reason": stop_word(finish, stop_reason),
        }

    def _prompt_text(self, choice: Choice) -> str:
        shown = self._tokenizer if self._request.skip_special_tokens else self._tokenizer.special_shown
        return shown.decode(choice.prompt_token_ids)

    def _prompt_entries(self, choice: Choice) -> list[tuple[int, TokenLogprob | None]]:
        if not self._request.echo:
            return []
        ids = choice.prompt_token_ids
        # A choice may end before the engine began with it: then nothing was scored.
        return list(zip(ids, choice.prompt_logprobs or (None,) * len(ids), strict=True))


class _Tokens:
    """The tokens of one choice as they are told; offsets go on from one telling to the next."""

    def __init__(self, tokenizer: Tokenizer, body: CompletionRequest) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if body.skip_special_tokens else frozenset()
        self._top = body.logprobs or 0
        self._characters = 0
        """That have begun in the text so far."""

    def told(self, entries: Sequence[tuple[int, TokenLogprob | None]]) -> dict[str, Any]:
        """Return the legacy object of these tokens."""
        return {
            "tokens": [self._name(token) for token, _ in entries],
            "token_logprobs": [None if entry is None else max(entry.logprob, LOWEST) for _, entry in entries],
            "top_logprobs": [None if entry is None else self._likeliest(entry) for _, entry in entries],
            "text_offset": [self._offset(token) for token, _ in entries],
        }

    def _likeliest(self, entry: TokenLogprob) -> dict[str, float]:
        """The token itself is told too; of two with one name, the likelier."""
        told: dict[str, float] = {}
        for candidate in (*entry.top[: self._top], entry):
            told.setdefault(self._name(candidate.token_id), max(candidate.logprob, LOWEST))
        return told

    def _offset(self, token: int) -> int:
        data = b"" if token in self._hidden else self._tokenizer.token_bytes(token)
        begun = sum(byte & 0xC0 != 0x80 for byte in data)
        offset = self._characters - (1 if data and data[0] & 0xC0 == 0x80 and self._characters else 0)
        self._characters += begun
        return offset

    def _name(self, token: int) -> str:
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
