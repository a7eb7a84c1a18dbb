"""The likeliest token that a grammar allows, in compiled code: on a CPU, torch takes four passes over the logits."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from server.engine.grammars.masks import Mask
from server.engine.native.library import NativeLibrary


class AllowedPeaks:
    """Finds each row's largest allowed logit, the lowest id where several tie, and whether the row is finite."""

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self._find = library.lib.waybill_allowed_peaks
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._find.argtypes = [pointer, pointer, pointer, number, number, number, pointer, pointer]
        self._find.restype = None

    def find(self, logits: Tensor, masks: Mapping[int, Mask]) -> tuple[Tensor, Tensor]:
        """Return ids [rows] int32 and finite [rows] bool of `logits` [rows, vocab] float32 on the CPU.

        `masks`, by row, are there for one row at least; rows without one may draw anything. A row that is not finite
        gets any id.
        """
        logits = logits.contiguous()
        rows, vocab_size = logits.shape
        width = len(next(iter(masks.values())))
        packed = np.full((rows, width), 255, dtype=np.uint8)
        for row, mask in masks.items():
            packed[row] = mask
        ids, finite = torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.bool)
        self._find(
            self._library.pool,
            logits.data_ptr(),
            packed.ctypes.data,
            rows,
            vocab_size,
            width,
            ids.data_ptr(),
            finite.data_ptr(),
        )
        return ids, finite
