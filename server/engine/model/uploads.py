"""Small numbers from the host into a tensor of the device that stays where it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TURNS = 4
"""Host copies that take turns: those of earlier steps may still be on their way to the device."""


def upload(values: Sequence[int], device: torch.device) -> Tensor:
    """Return `values` as int64 on the device, behind all that it has to do and without waiting for that.

    Memory that is not pinned would make the host wait.
    """
    host = torch.tensor(values, dtype=torch.int64)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


class Uploads:
    """A device tensor `there` [size], and host memory to fill it from without waiting for the device."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.there = torch.zeros(size, dtype=dtype, device=device)
        self._hosts = [torch.zeros(size, dtype=dtype, pin_memory=pinned) for _ in range(TURNS)]
        self._events = [torch.cuda.Event() for _ in range(TURNS)] if pinned else []  # type: ignore[no-untyped-call]
        self._turn = 0

    def take(self) -> Tensor:
        """Return host memory to write, once the copy that it was last used for has ended."""
        self._turn = (self._turn + 1) % TURNS
        if self._events:
            self._events[self._turn].synchronize()
        return self._hosts[self._turn]

    def send(self, used: int) -> None:
        """Copy the first `used` numbers of what `take` gave to the device, behind everything that it has to do."""
        self.there[:used].copy_(self._hosts[self._turn][:used], non_blocking=True)
        if self._events:
            self._events[self._turn].record()
