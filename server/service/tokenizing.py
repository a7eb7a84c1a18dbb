"""The use cases of the tokenizing routes: what a generate call would read of a text, and text from ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from server.core import BaseModel
from server.errors import InvalidRequest
from server.formats.spec import AdapterSpec
from server.service.adapters import AdapterService
from server.service.admission import Gate
from server.service.prompting import Prompter
from server.service.tenants import Tenant
from server.service.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What to tokenize: exactly one of `prompt`, `messages` and `fields`, with the fields of a generate call."""

    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    fields: dict[str, str] | None = None
    adapter: str | None = None
    task: str | int | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The text tokens, and how many virtual tokens stand before or among them."""

    ids: tuple[int, ...]
    virtual_tokens: int


@dataclass(frozen=True, slots=True)
class Located:
    """A token and the characters of the text that it stands for: none for what the tokenizer adds by itself."""

    id: int
    text: str
    start: int
    stop: int


class TokenizingService:
    """Tokenizes in threads. Each call holds a place of the gate, so that no crowd of long texts waits for a core."""

    def __init__(
        self, *, tokenizer: Tokenizer, prompter: Prompter, adapters: AdapterService, base: BaseModel, gate: Gate
    ) -> None:
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._adapters = adapters
        self._vocab_size = base.vocab_size
        self._gate = gate

    async def tokenize(self, tenant: Tenant, question: Question) -> Tokenized:
        """Return what a generate call with these fields would read.

        Raises AdapterNotFound, AdapterIncompatible, InvalidRequest, ContextTooLong, Overloaded, Draining.
        """
        if question.adapter is None:
            return await self._in_thread(lambda: self._read(None, question))
        version = await self._adapters.acquire(tenant, question.adapter)
        try:
            return await self._in_thread(lambda: self._read(version.spec, question))
        finally:
            self._adapters.release(version)

    async def locate(self, text: str, *, add_special_tokens: bool) -> list[Located]:
        """Return each token of a text with its place there. Raises as `tokenize`."""

        def work() -> list[Located]:
            self._prompter.admit(text, "inputs")
            found = self._tokenizer.locate(text, add_special_tokens=add_special_tokens)
            return [Located(token, text[start:stop], start, stop) for token, start, stop in found]

        return await self._in_thread(work)

    async def detokenize(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens by their names. Raises InvalidRequest for an id that is no token's."""
        known = self._tokenizer.vocab_size
        if ids and max(ids) >= known:
            raise InvalidRequest(f"tokens holds token ids outside 0..{known - 1}", param="tokens")
        return await self._in_thread(lambda: self._tokenizer.decode_all(ids))

    def _read(self, spec: AdapterSpec | None, question: Question) -> Tokenized:
        virtual = 0 if spec is None else spec.num_virtual_tokens
        if question.prompt is not None and (spec is None or spec.template is None) and question.task is None:
            # Nothing is generated: unlike a prompt, a text may be empty.
            self._prompter.admit(question.prompt, "prompt")
            ids = self._tokenizer.encode(question.prompt, add_special_tokens=question.add_special_tokens)
            return Tokenized(ids, virtual)
        rendered = self._prompter.render(
            spec,
            prompt=question.prompt,
            messages=question.messages,
            fields=question.fields,
            task=question.task,
            add_special_tokens=question.add_special_tokens,
            add_generation_prompt=question.add_generation_prompt,
        )
        whole = (*rendered.prefix_ids, *rendered.tokens)
        return Tokenized(tuple(token for token in whole if token < self._vocab_size), virtual)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with self._gate.place():
            return await asyncio.to_thread(work)
