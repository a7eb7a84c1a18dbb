"""Token ids to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet one."""

_PATIENCE = 8
"""Tokens. A character has at most four bytes, so text that is unfinished for longer will stay so."""


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        ...

    def decode_one(self, token: int) -> str:
        """Return what `decode` returns for one id."""
        ...


class Detokenizer:
    """The text of one sequence, in pieces that can be shown at once.

    `stopped` is the stop string that ended the text, None until then; the text ends before it, or after it with
    `include_stop`. A stop string counts only where it stands wholly in the text after the first `min_tokens` tokens.
    The pieces, with `flush` at the end, join to what decoding all tokens at once gives. Each token costs the same,
    however long the text is.
    """

    def __init__(
        self, tokenizer: Decoder, stop: Sequence[str] = (), *, include_stop: bool = False, min_tokens: int = 0
    ) -> None:
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._include_stop = include_stop
        self._watches = [_Watch(text) for text in dict.fromkeys(stop) if text]
        self._quiet = min_tokens
        self._context: list[int] = []
        self._fresh: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token and return what can be shown now, often nothing."""
        if self.stopped is not None:
            return ""
        watching = self._quiet <= 0
        self._quiet -= 1
        return self._release(self._decode(token), watching=watching)

    def flush(self) -> str:
        """Return the rest: the sequence has ended. Safe to call twice."""
        if self.stopped is not None:
            return ""
        rest, self._context, self._fresh = self._text_of(self._fresh), [], []
        shown = self._release(rest, watching=self._quiet < 0)
        if self.stopped is None:
            shown, self._held = shown + self._held, ""
        return shown

    def _decode(self, token: int) -> str:
        """Return the text that is certain now. Tokens are read after those before them: a space may depend on it."""
        if token in self._tokenizer.special_ids:
            return ""
        self._fresh.append(token)
        text = self._text_of(self._fresh)
        if text and not text.endswith(_UNFINISHED):
            self._settle(self._fresh)
            return text
        if len(self._fresh) <= _PATIENCE:
            return ""
        return self._give_up()

    def _give_up(self) -> str:
        """Settle all but the last few tokens, where no character is torn; one of four places next to each other is so.

        The last three stay whatever they are: the next token may yet complete a character that began in them.
        """
        whole = self._text_of(self._fresh)
        head, text = self._fresh, whole
        for keep in (3, 4, 5, 6):
            head = self._fresh[:-keep]
            text = self._text_of(head)
            if text + self._after(head, self._fresh[-keep:]) == whole:
                break
        self._settle(head)
        return text

    def _text_of(self, tokens: list[int]) -> str:
        return self._after(self._context, tokens)

    def _after(self, context: list[int], tokens: list[int]) -> str:
        """Return what `tokens` add to the text of `context`."""
        if not context:
            return self._tokenizer.decode(tokens)
        before = self._tokenizer.decode_one(context[0]) if len(context) == 1 else self._tokenizer.decode(context)
        both = self._tokenizer.decode([*context, *tokens])
        return both[len(before) :] if both.startswith(before) else self._tokenizer.decode(tokens)

    def _settle(self, tokens: list[int]) -> None:
        """Take the first of the fresh tokens as certain; they are the context of the rest."""
        self._context, self._fresh = tokens, self._fresh[len(tokens) :]

    def _release(self, text: str, *, watching: bool) -> str:
        """Return the held and the new text, up to a stop string or to what may become one; where it stays, all."""
        if not (watching and self._watches):
            return text
        for end, character in enumerate(text, start=1):
            met = [watch.stop for watch in self._watches if watch.meets(character)]
            if met:
                self.stopped = max(met, key=len)
                shown = self._held + text[:end]
                self._held = ""
                return shown if self._include_stop else shown[: -len(self.stopped)]
        whole = self._held + text
        certain = len(whole) - (0 if self._include_stop else max(watch.matched for watch in self._watches))
        self._held = whole[certain:]
        return whole[:certain]


class _Watch:
    """Looks for one stop string, a character at a time (Knuth, Morris and Pratt 1977)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        """Characters of the stop string that the text so far ends with."""
        self._borders = [0] * len(stop)
        for index in range(1, len(stop)):
            self._borders[index] = self._next(self._borders[index - 1], stop[index])

    def meets(self, character: str) -> bool:
        """Take the next character and return whether the stop string is complete."""
        self.matched = self._next(self.matched, character)
        return self.matched == len(self.stop)

    def _next(self, matched: int, character: str) -> int:
        while matched and self.stop[matched] != character:
            matched = self._borders[matched - 1]
        return matched + 1 if self.stop[matched] == character else 0
