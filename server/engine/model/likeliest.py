"""The likeliest token of each row, faster than torch finds it on a CPU, and whether a row can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256


def likeliest(scores: Tensor) -> Tensor:
    """Return the id of the largest of each row of `scores` [rows, vocab], the lowest id where several tie.

    The largest value of each block of tokens is found first, in one vectorised pass that keeps no ids. Rows that hold a
    NaN give any id.
    """
    vocab_size = scores.shape[1]
    count = vocab_size // _BLOCK
    if count < 2:
        return scores.max(dim=-1).indices
    blocks = scores[:, : count * _BLOCK].reshape(-1, count, _BLOCK)
    best, where = blocks.amax(dim=-1).max(dim=-1)
    rows = torch.arange(len(scores), device=scores.device)
    ids: Tensor = where * _BLOCK + blocks[rows, where].max(dim=-1).indices
    if count * _BLOCK == vocab_size:
        return ids
    rest, last = scores[:, count * _BLOCK :].max(dim=-1)
    return torch.where(rest > best, count * _BLOCK + last, ids)


def finite_rows(scores: Tensor) -> Tensor:
    """Return for each row of `scores` [rows, vocab] whether all of it is finite, in one pass.

    A sum is not finite as soon as one of its terms is not; finite logits are far too small to overflow.
    """
    return scores.sum(dim=-1).isfinite()
