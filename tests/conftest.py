"""Tiny models run fastest on one thread; two only wait for each other."""

from __future__ import annotations

import os

import torch

# Before anything imports Triton: its kernels run on the CPU, by its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)
