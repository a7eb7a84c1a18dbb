"""Log-probabilities of raw logits, and each row's likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.model.exact import row_sums

Likeliest = tuple[tuple[int, float], ...]
"""Token ids and their log-probabilities, the likeliest first; the lower id first where two tie."""


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Return how many rows of logits stay in a CPU's cache, or fill a GPU."""
    return max(1, (2**18 if device.type == "cpu" else 2**24) // vocab_size)


@dataclass(frozen=True, slots=True, eq=False)
class LogProbs:
    """Log-probabilities, natural logarithm, of rows of finite logits.

    A row's numbers are the same bits alone and among others: rows meet only in element-wise operations, in selections
    and in the sums of `exact`.
    """

    shifted: Tensor  # [rows, vocab] float32: the logits less the greatest of their row
    log_mass: Tensor  # [rows, 1] float64: what that leaves to subtract

    @classmethod
    def of(cls, logits: Tensor) -> LogProbs:
        """Take in `logits` [rows, vocab] float32, which are left as they are."""
        shifted = logits - logits.amax(dim=-1, keepdim=True)
        return cls(shifted, row_sums(shifted.exp()).log())

    def take(self, rows: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Return the log-probability of token `ids[i]` in row `rows[i]`."""
        where = torch.tensor([rows, ids], dtype=torch.int64, device=self.shifted.device)
        found: list[float] = (self.shifted[where[0], where[1]] - self.log_mass[where[0], 0]).tolist()
        return found

    def likeliest(self, count: int) -> list[Likeliest]:
        """Return the `count` likeliest tokens of each row, all tokens where there are fewer."""
        num_rows, vocab_size = self.shifted.shape
        count = min(count, vocab_size)
        if not count:
            return [()] * num_rows
        # More than `count` where tokens tie with the last; stable sorts then prefer low ids.
        rows, ids = (self.shifted >= self.shifted.topk(count, dim=-1).values[:, -1:]).nonzero(as_tuple=True)
        order = self.shifted[rows, ids].sort(descending=True, stable=True).indices
        order = order[rows[order].sort(stable=True).indices]
        sizes = rows.bincount(minlength=num_rows)
        place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[rows[order]]
        chosen = ids[order[place < count]].view(num_rows, count)
        values = self.shifted.gather(1, chosen) - self.log_mass
        return [tuple(zip(*row, strict=True)) for row in zip(chosen.tolist(), values.tolist(), strict=True)]
