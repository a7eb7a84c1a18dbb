"""Read and judge the header of a safetensors file without loading a tensor.

Layout: 8 bytes of little-endian header length, a JSON object of tensors, and their bytes without gaps
(https://github.com/huggingface/safetensors). The library allows duplicate keys, empty tensors and headers of 100 MB;
a stranger's file gets none of these.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.formats.strict_json import Malformed, parse_object, shown

MAX_HEADER_BYTES = 64 * 1024
MAX_DIMENSIONS = 8
FLOAT_DTYPES = frozenset({"F32", "F16", "BF16"})
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_MAGIC = (
    (b"\x80", "a Python pickle"),
    (b"PK", "a zip or a PyTorch checkpoint"),
    (b"\x1f\x8b", "a gzip archive"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. `offset` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_header(
    path: Path, *, max_bytes: int = MAX_HEADER_BYTES, dtypes: frozenset[str] = FLOAT_DTYPES
) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file, by name, in the order of their bytes.

    Raises Malformed when the file is something else, its header is over `max_bytes`, or the header is not exact: every
    dtype in `dtypes`, dimensions positive, the tensors' bytes one after another from the first to the last of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise Malformed("it is too short to be a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if length > min(max_bytes, size - 8):
            raise Malformed(_not_safetensors(start, length, max_bytes, size))
        data = file.read(length)
    entries = parse_object(data, max_bytes=max_bytes)
    _judge_metadata(entries.pop("__metadata__", {}))
    tensors = [_tensor(name, entry, 8 + length, dtypes) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _require_contiguous(tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _not_safetensors(start: bytes, length: int, max_bytes: int, size: int) -> str:
    """Say why the header length cannot be right. A pickle or an archive has no small length in its first 8 bytes."""
    for magic, what in _MAGIC:
        if start.startswith(magic) and length > MAX_HEADER_BYTES:
            return f"it is {what}, not a safetensors file"
    if length > size - 8:
        return f"its header claims {length:,} bytes, but the file has {size:,}"
    return f"its header has {length:,} bytes, more than the {max_bytes:,} allowed"


def _judge_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("its header's __metadata__ does not map names to text")


def _tensor(name: str, entry: Any, data_start: int, dtypes: frozenset[str]) -> TensorInfo:
    what = f"tensor {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise Malformed(f"{what} has dtype {shown(dtype)}; allowed are {', '.join(sorted(dtypes))}")
    if not _integers(shape) or len(shape) > MAX_DIMENSIONS or any(dim < 1 for dim in shape):
        raise Malformed(f"{what} has shape {shown(shape)}; dimensions are positive integers")
    if not _integers(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise Malformed(f"{what} has data_offsets {shown(offsets)}")
    first, last = offsets
    expected = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if last - first != expected:
        raise Malformed(
            f"{what} of dtype {dtype} and shape {shown(shape)} needs {expected:,} bytes, "
            f"but its data_offsets span {last - first:,}"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + first, expected)


def _integers(value: Any) -> bool:
    """Whether these are integers that a file could hold; larger ones cost more to multiply and print than to refuse."""
    return isinstance(value, list) and all(type(item) is int and abs(item) < 2**63 for item in value)


def _require_contiguous(tensors: list[TensorInfo], start: int, size: int) -> None:
    for tensor in tensors:
        if tensor.offset != start:
            fault = "overlaps the tensor before it" if tensor.offset < start else "leaves a gap before it"
            raise Malformed(f"tensor {shown(tensor.name)} {fault}")
        start += tensor.num_bytes
    if start != size:
        raise Malformed(f"its tensors end at byte {start:,}, but the file has {size:,}")
