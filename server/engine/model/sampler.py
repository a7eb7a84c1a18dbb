"""Draws the next token of every row of logits: one vectorised pass for mixed parameters.

A row's result depends on its logits, parameters, seed and output index, and on nothing else in the batch: rows meet
only in element-wise operations, in selections (maximum, top-k, sort) and in the sums of `exact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core import SamplingParams
from server.engine.grammars.masks import Mask
from server.engine.model.allowed import AllowedPeaks
from server.engine.model.filters import filters, survivors
from server.engine.model.likeliest import finite_rows, likeliest
from server.engine.model.logprobs import LogProbs, rows_at_once
from server.engine.model.masking import Masking
from server.engine.model.penalties import Penalties, penalises
from server.engine.model.rng import TokenNoise, draw_key

_COLDEST = 1e-30
"""Below this temperature only tokens that tie with the likeliest can win, and dividing would underflow."""


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """Who draws from one row. `drawn_before` is the index of this draw among the sequence's output tokens.

    `tokens` holds the prompt (`prompt_len` ids, virtual ones included) and as much of the output as is known; only
    penalties read it, and of the output only where the sampler has not drawn it itself.
    """

    sequence: int
    params: SamplingParams
    drawn_before: int
    tokens: Sequence[int]
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Draw:
    """A drawn token. Log-probabilities are of the raw logits, natural logarithm; None and () where not asked for."""

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws tokens and keeps what penalties need to know of each sequence.

    A batch of plain greedy rows costs one maximum. A sampled row costs a hash and a logarithm per token, or, where it
    filters, a selection of its likeliest tokens and a hash for those. `peaks` serves batches in which every row takes
    the likeliest token that its grammar allows.
    """

    def __init__(
        self,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        device: torch.device,
        peaks: AllowedPeaks | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._eos = tuple(eos_token_ids)
        self._device = device
        self._noise = TokenNoise(vocab_size, device)
        self._penalties = Penalties(vocab_size, device)
        self._masking = Masking(vocab_size, device)
        self._peaks = peaks
        self._chunk_rows = rows_at_once(vocab_size, device)

    @torch.inference_mode()
    def draw(
        self, logits: Tensor, requests: Sequence[DrawRequest], masks: Mapping[int, Mask] | None = None
    ) -> list[Draw | None]:
        """Return a token for every row of `logits` [rows, vocab] float32; None where the row is not finite.

        `logits` is left as it is. Ties go to the lowest id. `masks`, by row, say which tokens may be drawn, each at
        least one; they come last, so that nothing brings back what they forbid.
        """
        masks = masks or {}
        if self._peaks is not None and masks and all(map(self._takes_likeliest, requests)):
            return self.take_likeliest(*self._peaks.find(logits, masks))
        finite = finite_rows(logits).tolist()
        bare = any(r.params.temperature == 0 and row not in masks for row, r in enumerate(requests))
        tokens: list[int] = likeliest(logits).tolist() if bare else [0] * len(requests)
        adjusted = {
            row: self._adjust(logits[row], request)
            for row, request in enumerate(requests)
            if finite[row] and self._adjusts(request)
        }
        for row, scores in adjusted.items():
            if requests[row].params.temperature == 0:
                tokens[row] = int(scores.max(dim=-1).indices)
        if masks:
            masked = self._masking.applied(logits, adjusted, masks)
            adjusted.update(zip(masks, masked, strict=True))
            for row, token in zip(masks, likeliest(masked).tolist(), strict=True):
                tokens[row] = token
        sampled = [row for row, r in enumerate(requests) if finite[row] and r.params.temperature != 0]
        for rows in self._chunks(sampled, requests):
            scores = torch.stack([adjusted.get(row, logits[row]) for row in rows])
            for row, token in zip(rows, self._sample(scores, [requests[row] for row in rows]), strict=True):
                tokens[row] = token
        return [
            self._finish(logits[row], tokens[row], request) if finite[row] else None
            for row, request in enumerate(requests)
        ]

    def is_greedy(self, request: DrawRequest) -> bool:
        """Whether the request takes the likeliest token as the model gives it, and asks for nothing else."""
        return request.params.grammar is None and self._takes_likeliest(request)

    def take_likeliest(self, ids: Tensor, finite: Tensor) -> list[Draw | None]:
        """Return what `draw` returns for greedy rows, from each row's likeliest id [rows] and finiteness [rows]."""
        return [Draw(token) if good else None for token, good in zip(ids.tolist(), finite.tolist(), strict=True)]

    def forget(self, sequence: int) -> None:
        """Drop what is kept of a sequence. Safe for one that is not known."""
        self._penalties.forget(sequence)

    def _chunks(self, rows: Sequence[int], requests: Sequence[DrawRequest]) -> Iterator[list[int]]:
        """Yield `rows` in chunks, those that filter apart from those that do not."""
        for wanted in (False, True):
            alike = [row for row in rows if filters(requests[row].params) is wanted]
            for start in range(0, len(alike), self._chunk_rows):
                yield alike[start : start + self._chunk_rows]

    def _takes_likeliest(self, request: DrawRequest) -> bool:
        params = request.params
        return params.temperature == 0 and params.logprobs is None and not self._adjusts(request)

    def _adjusts(self, request: DrawRequest) -> bool:
        params = request.params
        return penalises(params) or bool(params.logit_bias) or request.drawn_before < params.min_tokens

    def _adjust(self, logits: Tensor, request: DrawRequest) -> Tensor:
        """Return `logits` [vocab] with penalties, bias and `min_tokens` applied, in that order."""
        params, scores = request.params, logits.clone()
        if penalises(params):
            split, known = request.prompt_len, request.prompt_len + request.drawn_before
            prompt, drawn = request.tokens[:split], request.tokens[split:known]
            self._penalties.apply(scores, params, request.sequence, prompt, drawn)
        if params.logit_bias:
            ids, bias = zip(*params.logit_bias, strict=True)
            scores.index_add_(0, self._indices(ids), torch.tensor(bias, dtype=scores.dtype, device=self._device))
        if request.drawn_before < params.min_tokens:
            ending = (() if params.ignore_eos else self._eos) + params.stop_token_ids
            scores[self._indices([token for token in ending if token < self._vocab_size])] = -torch.inf
        return scores

    def _sample(self, scores: Tensor, requests: Sequence[DrawRequest]) -> list[int]:
        """Draw one token per row of `scores` [rows, vocab], which may hold -inf. All rows filter, or none does."""
        params = [request.params for request in requests]
        temperature = torch.tensor(
            [[max(p.temperature, _COLDEST)] for p in params], dtype=torch.float32, device=self._device
        )
        weights = (scores - scores.amax(dim=-1, keepdim=True)).div_(temperature).exp_()
        keys = [draw_key(request.params.seed, request.drawn_before) for request in requests]
        if not filters(params[0]):
            every: list[int] = weights.div_(self._noise.exponentials(keys)).max(dim=-1).indices.tolist()
            return every
        tokens = [0] * len(requests)
        for left in survivors(weights, params):
            noise = self._noise.exponentials([keys[row] for row in left.rows], left.ids)
            first = (left.weights / noise).max(dim=-1, keepdim=True).indices
            for row, token in zip(left.rows, left.ids.gather(1, first)[:, 0].tolist(), strict=True):
                tokens[row] = token
        return tokens

    def _finish(self, logits: Tensor, token: int, request: DrawRequest) -> Draw:
        if penalises(request.params):
            self._penalties.count(request.sequence, token)
        asked = request.params.logprobs
        if asked is None:
            return Draw(token)
        probs = LogProbs.of(logits[None])
        return Draw(token, probs.take([0], [token])[0], probs.likeliest(asked)[0])

    def _indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
