"""Takes the tokens that a grammar forbids out of rows of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from server.engine.grammars.masks import Mask


class Masking:
    """Spreads packed masks over a vocabulary, on the device of the scores: what travels there is one bit a token.

    A byte's eight tokens are looked up as eight floats to add, 0 or -inf: on a CPU, torch adds ten times faster than it
    chooses (`torch.where`).
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._addends = torch.from_numpy(bits).float().log().to(device)  # [256, 8]

    def applied(self, logits: Tensor, adjusted: Mapping[int, Tensor], masks: Mapping[int, Mask]) -> Tensor:
        """Return the rows of `masks` [masks, vocab], which is not empty, with -inf for what is forbidden.

        They are rows of `logits` [rows, vocab] float32, or those in `adjusted` in their place; of a row that is not
        finite nothing is left to rely on.
        """
        packed = torch.from_numpy(np.stack(list(masks.values()))).to(self._device)
        spread = embedding(packed.int(), self._addends).view(len(masks), -1)[:, : self._vocab_size]
        return spread.add_(_scores(logits, adjusted, list(masks)))


def _scores(logits: Tensor, adjusted: Mapping[int, Tensor], rows: Sequence[int]) -> Tensor:
    """Return these rows [some, vocab], without a copy where they stand together in `logits` as they are."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))) and adjusted.keys().isdisjoint(rows):
        return logits[rows[0] : rows[0] + len(rows)]
    return torch.stack([adjusted.get(row, logits[row]) for row in rows])
