"""Draws the next token of every row of logits: one vectorised pass for mixed parameters.

A row's result depends on its logits, parameters, seed and output index, and on nothing else in the batch: rows meet
only in element-wise operations, in selections (maximum, top-k, sort) and in the sums of `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core import SamplingParams
from server.engine.model.exact import row_sums, running_sums
from server.engine.model.penalties import Penalties, penalises
from server.engine.model.rng import TokenNoise, draw_key

_LIKELIEST = (256, 4096)
"""How many of the likeliest tokens are looked at for top-k and top-p before the whole row is sorted."""

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

    A batch of plain greedy rows costs one maximum. Sampled rows cost a hash and two exponentials per token; top-k and
    top-p add a selection of the likeliest tokens, and a full sort only where 4,096 tokens do not hold enough mass.
    """

    def __init__(self, vocab_size: int, eos_token_ids: Sequence[int], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos = tuple(eos_token_ids)
        self._device = device
        self._noise = TokenNoise(vocab_size, device)
        self._penalties = Penalties(vocab_size, device)
        # Chunks of rows that stay in a CPU's cache, or that fill a GPU.
        self._chunk_rows = max(1, (2**18 if device.type == "cpu" else 2**24) // vocab_size)

    @torch.inference_mode()
    def draw(self, logits: Tensor, requests: Sequence[DrawRequest]) -> list[Draw | None]:
        """Return a token for every row of `logits` [rows, vocab] float32; None where the row is not finite.

        `logits` is left as it is. Ties go to the lowest id.
        """
        peaks, likeliest = logits.max(dim=-1)
        finite = (peaks.isfinite() & logits.amin(dim=-1).isfinite()).tolist()
        tokens: list[int] = likeliest.tolist()
        adjusted = {
            row: self._adjust(logits[row], request)
            for row, request in enumerate(requests)
            if finite[row] and self._adjusts(request)
        }
        for row, scores in adjusted.items():
            if requests[row].params.temperature == 0:
                tokens[row] = int(scores.max(dim=-1).indices)
        sampled = [row for row, r in enumerate(requests) if finite[row] and r.params.temperature != 0]
        for start in range(0, len(sampled), self._chunk_rows):
            rows = sampled[start : start + self._chunk_rows]
            scores = torch.stack([adjusted.get(row, logits[row]) for row in rows])
            for row, token in zip(rows, self._sample(scores, [requests[row] for row in rows]), strict=True):
                tokens[row] = token
        return [
            self._finish(logits[row], tokens[row], request) if finite[row] else None
            for row, request in enumerate(requests)
        ]

    def forget(self, sequence: int) -> None:
        """Drop what is kept of a sequence. Safe for one that is not known."""
        self._penalties.forget(sequence)

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
        """Draw one token per row of `scores` [rows, vocab], which may hold -inf."""
        params = [request.params for request in requests]
        temperature = self._column([max(p.temperature, _COLDEST) for p in params])
        # Probability relative to the likeliest token, whose weight is exactly 1.
        weights = (scores - scores.amax(dim=-1, keepdim=True)).div_(temperature).exp_()
        if any(p.top_k or p.top_p < 1 or p.min_p for p in params):
            weights.masked_fill_(weights < self._floors(weights, params), 0)
        noise = self._noise.exponentials([draw_key(r.params.seed, r.drawn_before) for r in requests])
        tokens: list[int] = weights.div_(noise).max(dim=-1).indices.tolist()
        return tokens

    def _floors(self, weights: Tensor, params: Sequence[SamplingParams]) -> Tensor:
        """Return the smallest weight [rows, 1] that each row's filters keep. Tokens that tie with it are kept too."""
        floors = self._column([p.min_p for p in params])
        pending = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1]
        if not pending:
            return floors
        limits = row_sums(weights) * self._column([p.top_p if p.top_p < 1 else torch.inf for p in params]).double()
        most = self._indices([p.top_k or self._vocab_size for p in params])
        for width in (*_LIKELIEST, self._vocab_size):
            if not pending:
                break
            if width > self._vocab_size:
                continue
            rows = self._indices(pending)
            best = _largest(weights[rows], width)
            before = running_sums(best) - best
            nucleus = (before < limits[rows]).sum(dim=-1).clamp_(min=1)
            kept = torch.minimum(nucleus, most[rows])
            settled = (kept < width) | (kept == most[rows])
            cut = best.gather(1, (kept - 1)[:, None])
            floors[rows] = torch.where(settled[:, None], torch.maximum(floors[rows], cut), floors[rows])
            pending = [row for row, done in zip(pending, settled.tolist(), strict=True) if not done]
        return floors

    def _finish(self, logits: Tensor, token: int, request: DrawRequest) -> Draw:
        if penalises(request.params):
            self._penalties.count(request.sequence, token)
        asked = request.params.logprobs
        if asked is None:
            return Draw(token)
        shifted = logits - logits.max()
        log_mass = float(row_sums(shifted.exp()[None]).log())
        top: tuple[tuple[int, float], ...] = ()
        if asked:
            # More than `asked` where tokens tie with the last; the stable sort then prefers low ids.
            ids = (shifted >= shifted.topk(min(asked, self._vocab_size)).values[-1]).nonzero()[:, 0]
            values, order = shifted[ids].sort(descending=True, stable=True)
            pairs = zip(ids[order[:asked]].tolist(), values[:asked].tolist(), strict=True)
            top = tuple((token_id, value - log_mass) for token_id, value in pairs)
        return Draw(token, float(shifted[token]) - log_mass, top)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]

    def _indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _largest(weights: Tensor, width: int) -> Tensor:
    """Return the `width` largest of each row, in descending order."""
    if width == weights.shape[1]:
        return weights.sort(dim=-1, descending=True).values
    return weights.topk(width, dim=-1).values
