"""Weights written as bfloat16 in one safetensors file (format: https://github.com/huggingface/safetensors#format)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.basemodel.gguf import FloatArray

_HEADER_ALIGNMENT = 8  # bytes


def to_bfloat16(values: FloatArray) -> npt.NDArray[np.uint16]:
    """Round float32 `values` to the nearest bfloat16, ties to even; returns the 16-bit patterns, same shape.

    This is the rounding of torch's `.to(torch.bfloat16)`. NaN stays NaN.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Half of the last kept bit's worth, less one where that bit is 0, so that a tie rounds to even. A value that
    # rounds past the largest number becomes infinity by the carry, as it should.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")


def write_bfloat16(path: Path, shapes: Mapping[str, tuple[int, ...]], tensor: Callable[[str], FloatArray]) -> None:
    """Write tensors of `shapes` to `path`, asking `tensor(name)` for one at a time, so that only one is in memory.

    Names are sorted and the header is laid out as the safetensors library does it: the same weights always give the
    same bytes.
    """
    names = sorted(shapes)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + 2 * int(np.prod(shapes[name]))
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(to_bfloat16(tensor(name)).tobytes())
