"""What a sequence has said so far, and what its penalties make of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core import SamplingParams


def penalises(params: SamplingParams) -> bool:
    """Whether these parameters look at the sequence's own tokens."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


@dataclass(slots=True)
class History:
    """The tokens of one sequence: whether each stands in the prompt, how often each was drawn."""

    prompt: Tensor  # [vocab] bool
    counts: Tensor  # [vocab] float32
    drawn: int


class Penalties:
    """Histories of the sequences that ask for penalties, by sequence id.

    A history follows the draws, not the tokens that the caller knows, because the caller may plan a step before it has
    seen the last one's tokens. It survives preemption and goes with `forget`.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._histories: dict[int, History] = {}

    def __len__(self) -> int:
        return len(self._histories)

    def apply(
        self, scores: Tensor, params: SamplingParams, sequence: int, prompt: Sequence[int], drawn: Sequence[int]
    ) -> None:
        """Penalise `scores` [vocab] in place.

        Repetition is Keskar et al. 2019 (arXiv:1909.05858) over prompt and output; presence and frequency are OpenAI's
        over the output. `prompt` and `drawn` are read where the history is new or does not reach as far as they do.
        """
        history = self._histories.get(sequence)
        if history is None or history.drawn < len(drawn):
            history = self._histories[sequence] = self._read(prompt, drawn)
        if params.repetition_penalty != 1:
            penalty = params.repetition_penalty
            seen = history.prompt | (history.counts > 0)
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            torch.where(seen, penalised, scores, out=scores)
        if params.frequency_penalty != 0:
            scores -= history.counts * params.frequency_penalty
        if params.presence_penalty != 0:
            scores -= (history.counts > 0).to(scores.dtype) * params.presence_penalty
        limit = torch.finfo(scores.dtype).max
        scores.clamp_(-limit, limit)  # a tiny repetition penalty may overflow

    def count(self, sequence: int, token: int) -> None:
        """Note a draw of a sequence that has a history."""
        history = self._histories[sequence]
        history.counts[token] += 1
        history.drawn += 1

    def forget(self, sequence: int) -> None:
        """Drop a history, if there is one."""
        self._histories.pop(sequence, None)

    def _read(self, prompt: Sequence[int], drawn: Sequence[int]) -> History:
        counts = torch.bincount(self._known(drawn), minlength=self._vocab_size).to(torch.float32)
        seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
        seen[self._known(prompt)] = True
        return History(seen, counts, len(drawn))

    def _known(self, tokens: Sequence[int]) -> Tensor:
        """Virtual tokens are no words: they are never penalised."""
        known = [token for token in tokens if 0 <= token < self._vocab_size]
        return torch.tensor(known, dtype=torch.int64, device=self._device)
