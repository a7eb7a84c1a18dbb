"""Sums whose rounding does not depend on the shape of the batch.

A library's `sum` and `cumsum` may split a row differently when there are more rows. These are made of element-wise
additions only, in an order that the row's length fixes, so that a row's result is the same bits alone and in a crowd.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_sums(values: Tensor) -> Tensor:
    """Return the float64 sums [rows, 1] of `values` [rows, n], by halving."""
    sums = values.to(torch.float64)
    while (width := sums.shape[1]) > 1:
        half = width // 2
        sums[:, :half] += sums[:, width - half :]
        sums = sums[:, : width - half]
    return sums


def running_sums(values: Tensor) -> Tensor:
    """Return the float64 inclusive prefix sums of each row of `values` [rows, n], by doubling."""
    sums = values.to(torch.float64)
    step = 1
    while step < sums.shape[1]:
        sums = torch.cat((sums[:, :step], sums[:, step:] + sums[:, :-step]), dim=1)
        step *= 2
    return sums
