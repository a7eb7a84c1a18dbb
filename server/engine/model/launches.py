"""What a step drew that the host has not read yet, and where each sequence's last token stands on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Tokens of some rows, on the device: `tokens` [rows] int64, `finite` [rows] bool."""

    tokens: Tensor
    finite: Tensor


class Launch:
    """A step on its way: whose tokens it draws. `read` waits for the device, nothing else does."""

    def __init__(self, device: torch.device) -> None:
        self.sequences: list[int] = []
        self._device = device
        self._parts: list[tuple[Drawn, list[int] | None]] = []
        self._back: list[tuple[Tensor, Tensor, list[int] | None]] = []
        self._event: torch.cuda.Event | None = None

    def add(self, sequences: Sequence[int], drawn: Drawn, picked: list[int] | None) -> None:
        """Rows `picked` (None: all) of `drawn` are the next tokens of these sequences."""
        self.sequences += sequences
        self._parts.append((drawn, picked))

    def read_back(self) -> None:
        """Begin to copy the tokens to the host, behind all that the device has to do."""
        pinned = self._device.type == "cuda"
        for drawn, picked in self._parts:
            both = torch.stack([drawn.tokens, drawn.finite.to(torch.int64)])
            host = torch.empty(both.shape, dtype=both.dtype, pin_memory=pinned)
            host.copy_(both, non_blocking=True)
            self._back.append((host[0], host[1], picked))
        self._parts.clear()
        if pinned:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> tuple[Tensor, Tensor]:
        """Return token ids and whether their logits were finite, in the order of `sequences`; waits for the step."""
        if self._event is not None:
            self._event.synchronize()
        if not self._back:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
        tokens = torch.cat([part if picked is None else part[picked] for part, _, picked in self._back])
        finite = torch.cat([part if picked is None else part[picked] for _, part, picked in self._back])
        return tokens, finite.bool()


class Places:
    """Where on the device the tokens of one launch stand, for the next one to take them.

    Launches write in two halves in turn, so that one never overwrites what it still reads.
    """

    def __init__(self, count: int) -> None:
        """`count` is how many sequences draw in one launch at most."""
        self._count = count
        self._half = 0
        self._before: dict[int, int] = {}
        self._now: dict[int, int] = {}

    def begin(self) -> None:
        """A new launch: what the last one wrote is what this one reads."""
        self._half = 1 - self._half
        self._before, self._now = self._now, {}

    def read(self, sequence: int) -> int:
        """Return where the launch before left this sequence's token. Raises KeyError where it drew none."""
        return self._before[sequence]

    def write(self, sequence: int) -> int:
        """Return where this launch leaves this sequence's token."""
        return self._now.setdefault(sequence, self._half * self._count + len(self._now))
