"""Tensors as rows of bytes with a dtype and a shape, checked against the storage that they are views of.

Nothing is computed with values here, so bytes and strides are all it takes: numpy would bring the pickle module along.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from server.formats.strict_json import Malformed

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one value of each dtype that an adapter may have."""

MAX_DIMENSIONS = 8
_MAX_INDEX = 2**48


@dataclass(frozen=True, slots=True)
class Tensor:
    """Values of one dtype ("F32", "F16" or "BF16"), little-endian.

    `row` returns the values along the last dimension at an index of all the others.
    """

    dtype: str
    shape: tuple[int, ...]
    row: Callable[[tuple[int, ...]], bytes]

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def rows(self) -> Iterator[bytes]:
        """Return all values, a row at a time, the last index running fastest."""
        return map(self.row, itertools.product(*map(range, self.shape[:-1])))


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
    """Return the tensor that `view` is, over its storage's bytes, without copying them.

    Raises Malformed where the storage has other bytes than claimed, the view leaves it, or the view repeats elements:
    then a few bytes could claim to be a tensor of any size.
    """
    numel, item_bytes = view.storage.numel, ITEM_BYTES[view.storage.dtype]
    if numel * item_bytes != len(data):
        raise Malformed(
            f"the storage {view.storage.key!r} claims {numel:,} elements of {view.storage.dtype}, "
            f"{numel * item_bytes:,} bytes, but the file has {len(data):,} for it"
        )
    count = math.prod(view.shape)
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if count and last >= numel:
        raise Malformed(
            f"a tensor of shape {list(view.shape)}, strides {list(view.strides)} and offset {view.offset:,} reaches "
            f"outside its storage of {numel:,} elements"
        )
    if count > 1 and _repeats(view):
        raise Malformed(
            f"a tensor of shape {list(view.shape)} and strides {list(view.strides)} repeats the elements of its "
            "storage (an expanded tensor): save it again after .contiguous()"
        )
    elements: memoryview[int] = data.cast("I") if item_bytes == 4 else data.cast("H")

    def row(index: tuple[int, ...]) -> bytes:
        *outer, step = view.strides
        start = view.offset + sum(map(int.__mul__, index, outer))
        return elements[start : start + view.shape[-1] * max(1, step) : max(1, step)].tobytes()

    return Tensor(view.storage.dtype, view.shape, row)


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
