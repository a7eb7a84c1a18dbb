"""Prompts: a template and a text turned into token ids, as the server does it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_ROWS = re.compile(r"\{v:(\d+)-(\d+)\}")


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes prompts for one tokenizer. Virtual token r has the id `vocab_size + r`."""

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int

    def encode(self, template: str, text: str) -> list[int]:
        """Return the ids of `template` with `text` in its place.

        What stands between two groups of virtual tokens is tokenised as one string, so that the text and the words
        around it merge as they will when the adapter is served.
        """
        ids: list[int] = []
        at = 0
        for rows in _ROWS.finditer(template):
            ids += self._words(template[at : rows.start()], text)
            ids += range(self.vocab_size + int(rows[1]), self.vocab_size + int(rows[2]) + 1)
            at = rows.end()
        return ids + self._words(template[at:], text)

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer, with the end token that teaches the model to stop."""
        return [*self._tokenize(text), self.tokenizer.eos_token_id]

    def text(self, ids: list[int]) -> str:
        """Return what `ids` say, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _words(self, words: str, text: str) -> list[int]:
        return self._tokenize(words.replace("{text}", text)) if words else []

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
