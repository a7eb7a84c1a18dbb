"""Tiny models run fastest on one thread; two only wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
