"""What every part is given: the device, how large to be, and when to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Setting:
    """`dry` means tiny shapes on a CPU, where Triton's interpreter runs the kernels."""

    device: torch.device
    dry: bool
    until: float  # time.monotonic() when the whole run should be over
    facts: dict[str, Any] = field(default_factory=dict)  # what earlier parts found, for later ones

    @property
    def left(self) -> float:
        """Seconds until the run should be over."""
        return self.until - time.monotonic()

    @property
    def dtype(self) -> torch.dtype:
        """The format that models are served in."""
        return torch.float32 if self.dry else torch.bfloat16
