"""Takes the tokens that a grammar forbids out of rows of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from server.engine.grammars.masks import Mask


class Masking:
    """Spreads packed masks over a vocabulary, on the device of the scores: what travels there is one bit a token.

    The eight tokens of each byte are eight bytes, which are looked up as one number.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        eights = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._eights = torch.from_numpy(eights).view(torch.int64)[:, 0].to(device)  # [256]

    def applied(self, logits: Tensor, adjusted: Mapping[int, Tensor], masks: Mapping[int, Mask]) -> Tensor:
        """Return the rows of `masks` [masks, vocab], which is not empty, with -inf for what is forbidden.

        They are rows of `logits` [rows, vocab], or those in `adjusted` in their place.
        """
        allowed = self._spread(np.stack(list(masks.values())))
        return torch.where(allowed, _scores(logits, adjusted, list(masks)), -torch.inf)

    def _spread(self, packed: Mask) -> Tensor:
        """Return [rows, vocab] bool, from [rows, bytes]."""
        allowed = self._eights[torch.from_numpy(packed).to(self._device).long()]
        return allowed.view(torch.bool)[:, : self._vocab_size]


def _scores(logits: Tensor, adjusted: Mapping[int, Tensor], rows: Sequence[int]) -> Tensor:
    """Return these rows [some, vocab], without a copy where they stand together in `logits` as they are."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))) and adjusted.keys().isdisjoint(rows):
        return logits[rows[0] : rows[0] + len(rows)]
    return torch.stack([adjusted.get(row, logits[row]) for row in rows])
