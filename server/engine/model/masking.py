"""Takes the tokens that a grammar forbids out of rows of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from server.engine.grammars.masks import Mask


class Masking:
    """Spreads packed masks over a vocabulary, a byte at a time: each of the 256 has its eight tokens in a table."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._forbidden = torch.from_numpy(bits == 0).to(device)  # [256, 8] bool

    def applied(
        self, logits: Tensor, adjusted: Mapping[int, Tensor], masks: Mapping[int, Mask], at_once: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield rows of `logits` [rows, vocab], those in `adjusted` in their place, with -inf for what is forbidden.

        Each row of `masks` comes once, `at_once` of them together, as [some, vocab] float32.
        """
        every = list(masks)
        for start in range(0, len(every), at_once):
            rows = every[start : start + at_once]
            packed = torch.from_numpy(np.stack([masks[row] for row in rows])).to(logits.device)
            forbidden = self._forbidden[packed.long()].flatten(1)[:, : self._vocab_size]
            scores = torch.stack([adjusted.get(row, logits[row]) for row in rows])
            yield rows, scores.masked_fill_(forbidden, -torch.inf)
