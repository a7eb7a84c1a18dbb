"""Tensors as bytes with a dtype and a shape, checked against the storage that they are views of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.formats.strict_json import Malformed

NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""numpy's name for each dtype of an adapter; bfloat16, which numpy lacks, is its 16-bit pattern."""

MAX_DIMENSIONS = 8
_MAX_INDEX = 2**48


@dataclass(frozen=True, slots=True)
class Tensor:
    """Values of one dtype ("F32", "F16" or "BF16"); `data` has the numpy dtype of `NUMPY_DTYPES` and any strides."""

    dtype: str
    data: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its dimensions."""
        return self.data.shape


@dataclass(frozen=True, slots=True)
class Storage:
    """What a pickle says of a storage: its bytes lie elsewhere in the file, under `key`. `numel` counts elements."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class View:
    """What a pickle says of a tensor: offset and strides count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def make_view(storage: Any, offset: Any, shape: Any, strides: Any) -> View:
    """Return the view, once the numbers make sense by themselves. Raises Malformed."""
    if not isinstance(storage, Storage):
        raise Malformed("a tensor has no storage")
    if type(offset) is not int or not _indices(shape) or not _indices(strides) or len(shape) != len(strides):
        raise Malformed("a tensor's offset, shape or strides are no integers, or differ in number")
    if len(shape) > MAX_DIMENSIONS:
        raise Malformed(f"a tensor has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    for what, numbers in (("offset", (offset,)), ("shape", shape), ("strides", strides)):
        for number in numbers:
            if number < 0:
                raise Malformed(
                    f"a tensor has a negative {what.removesuffix('s')} ({number}), which torch never writes"
                )
            if number > _MAX_INDEX:
                raise Malformed(f"a tensor's {what} count more elements than a file can have")
    return View(storage, offset, tuple(shape), tuple(strides))


def resolve(view: View, data: memoryview) -> Tensor:
    """Return the tensor that `view` is, over its storage's bytes (little-endian), without copying them.

    Raises Malformed where the storage has other bytes than claimed, the view leaves it, or the view repeats elements:
    then a few bytes could claim to be a tensor of any size.
    """
    dtype = np.dtype(NUMPY_DTYPES[view.storage.dtype])
    numel = view.storage.numel
    if numel * dtype.itemsize != len(data):
        raise Malformed(
            f"the storage {view.storage.key!r} claims {numel:,} elements of {view.storage.dtype}, "
            f"{numel * dtype.itemsize:,} bytes, but the file has {len(data):,} for it"
        )
    count = math.prod(view.shape)
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if count and last >= numel or view.offset > numel:
        raise Malformed(
            f"a tensor of shape {list(view.shape)}, strides {list(view.strides)} and offset {view.offset:,} reaches "
            f"outside its storage of {numel:,} elements"
        )
    if count > numel or (count > 1 and _repeats(view)):
        raise Malformed(
            f"a tensor of shape {list(view.shape)} and strides {list(view.strides)} repeats the elements of its storage "
            "(an expanded tensor): save it again after .contiguous()"
        )
    elements = np.frombuffer(data, dtype=dtype)[view.offset :]
    strides = tuple(stride * dtype.itemsize for stride in view.strides)
    return Tensor(
        view.storage.dtype,
        np.lib.stride_tricks.as_strided(elements, shape=view.shape, strides=strides, writeable=False)
        if count
        else np.empty(view.shape, dtype=dtype),
    )


def same_dtype(tensors: list[Tensor]) -> tuple[str, list[Tensor]]:
    """Return the tensors in one dtype: their own where they agree, else F32, which holds every value exactly."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1:
        return dtypes.pop(), tensors
    return "F32", [_widened(tensor) for tensor in tensors]


def _widened(tensor: Tensor) -> Tensor:
    if tensor.dtype == "BF16":
        return Tensor("F32", (tensor.data.astype("<u4") << 16).view("<f4"))
    return Tensor("F32", tensor.data.astype("<f4"))


def _indices(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(number) is int for number in value)


def _repeats(view: View) -> bool:
    """Whether a dimension steps by less than the smaller dimensions span, as no slice or transpose of a tensor does."""
    span = 0
    for stride, size in sorted(zip(view.strides, view.shape, strict=True)):
        if size > 1:
            if stride <= span:
                return True
            span += (size - 1) * stride
    return False
