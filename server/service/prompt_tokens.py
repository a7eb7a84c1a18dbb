"""A prompt's own text tokens: which they are, how many were computed before, what the engine said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.core import PromptScores
from server.service.exchange import TokenLogprob
from server.service.prompting import RenderedPrompt


class PromptTokens:
    """The tokens of one rendered prompt that are text: virtual ones are no words and are never told."""

    def __init__(self, prompt: RenderedPrompt, vocab_size: int, token_text: Callable[[int], str]) -> None:
        self._prompt = prompt
        self._vocab_size = vocab_size
        self._token_text = token_text

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids in the vocabulary, those that are compiled with the adapter's prefix first."""
        prompt = self._prompt
        return tuple(token for token in (*prompt.prefix_ids, *prompt.tokens) if token < self._vocab_size)

    def cached(self, count: int) -> int:
        """Return how many of the first `count` tokens of the sequence are text."""
        prompt = self._prompt
        if not prompt.needs_table:  # no virtual token among them
            return min(count, len(prompt.tokens))
        return sum(token < self._vocab_size for token in prompt.tokens[:count])

    def logprobs(self, scores: Iterable[PromptScores]) -> tuple[TokenLogprob | None, ...]:
        """Return an entry for each of `ids`; None where the engine scored nothing.

        That is the first of the sequence, which has nothing before it, and what is compiled with the prefix.
        """
        prompt = self._prompt
        told: list[TokenLogprob | None] = [None for token in prompt.prefix_ids if token < self._vocab_size]
        entries = {
            scored.start + offset: self._entry(prompt.tokens[scored.start + offset], scored, offset)
            for scored in scores
            for offset in range(len(scored.logprobs))
        }
        told += [entries.get(place) for place, token in enumerate(prompt.tokens) if token < self._vocab_size]
        return tuple(told)

    def _entry(self, token: int, scored: PromptScores, offset: int) -> TokenLogprob:
        top = scored.tops[offset] if scored.tops else ()
        return TokenLogprob(
            token,
            self._token_text(token),
            scored.logprobs[offset],
            tuple(TokenLogprob(other, self._token_text(other), logprob) for other, logprob in top),
        )
