"""Which tokens top-k, top-p, min-p and typical decoding leave in the race.

Each of the first three keeps the tokens above a weight of its own, so together they keep those above the highest of the
three. Typical decoding then looks at what they leave, and may take even the likeliest out. Tokens that tie with the
last one kept stay too: the result depends on values alone, never on the order of a sort. Top-k is Fan et al. 2018
(arXiv:1805.04833), top-p Holtzman et al. 2019 (arXiv:1904.09751), min-p Nguyen et al. 2024 (arXiv:2407.01082), typical
decoding Meister et al. 2022 (arXiv:2202.00666). Top-p counts mass over the full vocabulary, also where top-k is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core import SamplingParams
from server.engine.model.exact import row_sums, running_sums

_WIDTHS = (256, 4096)
"""How many of a row's likeliest tokens are looked at before the whole row is sorted."""


@dataclass(frozen=True, slots=True)
class Survivors:
    """What is left of some rows of a batch; weight 0 is out."""

    rows: list[int]
    ids: Tensor  # [rows, width] int64
    weights: Tensor  # [rows, width] float32


def filters(params: SamplingParams) -> bool:
    """Whether these parameters take tokens out of the race."""
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0 or params.typical_p < 1


def survivors(weights: Tensor, params: Sequence[SamplingParams]) -> Iterator[Survivors]:
    """Yield every row of `weights` [rows, vocab] once, filtered.

    A weight is a probability relative to the row's likeliest token, whose weight is 1. Rows come in groups of the
    width that they need: a row that keeps more than the likeliest 256 tokens is tried again with 4,096, then sorted.
    """
    vocab_size, device = weights.shape[1], weights.device
    most = torch.tensor([[p.top_k or vocab_size] for p in params], device=device)
    least = torch.tensor([[p.min_p] for p in params], dtype=torch.float32, device=device)
    limits = torch.tensor([[p.top_p if p.top_p < 1 else torch.inf] for p in params], dtype=torch.float64, device=device)
    if any(p.top_p < 1 for p in params):
        limits *= row_sums(weights)
    pending = list(range(len(params)))
    for width in (*(width for width in _WIDTHS if width < vocab_size), vocab_size):
        rows = torch.tensor(pending, device=device)
        best, ids = _likeliest(weights if len(pending) == len(params) else weights[rows], width)
        before = running_sums(best) - best
        ranks = torch.arange(width, device=device)
        # What weighs nothing is out already, as under a mask: it is no reason to look further.
        kept = (before < limits[rows]) & (ranks < most[rows]) & (best >= least[rows]) & (best > 0)
        floor = best.gather(1, kept.sum(dim=1, keepdim=True).clamp_(min=1) - 1)
        settled = [True] * len(pending) if width == vocab_size else (best[:, -1:] < floor)[:, 0].tolist()
        picked = [index for index, done in enumerate(settled) if done]
        if picked:
            left = torch.where(best >= floor, best, 0)
            chosen = [pending[index] for index in picked]
            yield _typical(Survivors(chosen, ids[picked], left[picked]), [params[row].typical_p for row in chosen])
        pending = [row for row, done in zip(pending, settled, strict=True) if not done]
        if not pending:
            return


def _typical(left: Survivors, masses: Sequence[float]) -> Survivors:
    """Return the survivors whose surprise is nearest to the expected one, as many as have each row's mass."""
    if all(mass == 1 for mass in masses):
        return left
    limits = torch.tensor(
        [[mass if mass < 1 else torch.inf] for mass in masses], dtype=torch.float64, device=left.weights.device
    )
    chances = left.weights.to(torch.float64) / row_sums(left.weights)
    surprise = -chances.log()
    expected = row_sums(torch.where(chances > 0, chances * surprise, 0))
    distance = (surprise - expected).abs()
    nearest, order = distance.sort(dim=1, stable=True)
    share = chances.gather(1, order)
    before = running_sums(share) - share
    farthest = nearest.gather(1, (before < limits).sum(dim=1, keepdim=True).clamp_(min=1) - 1)
    return Survivors(left.rows, left.ids, torch.where(distance <= farthest, left.weights, 0))


def _likeliest(weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the `width` largest of each row in descending order, and their ids."""
    if width == weights.shape[1]:
        best, ids = weights.sort(dim=1, descending=True)
    else:
        best, ids = weights.topk(width, dim=1)
    return best, ids
