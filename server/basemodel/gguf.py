"""A reader of GGUF files: metadata, and the tensor types that small quantised models use.

The format is a header, a list of typed key-value pairs, a list of tensor descriptions and the aligned tensor data; see
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Quantised tensors are rows of blocks of 32 weights.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.basemodel.errors import BaseModelError

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BLOCK = 32  # weights


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How one tensor type lies in the file: `block` weights take `num_bytes` bytes."""

    block: int
    num_bytes: int
    decode: Callable[[ByteArray], FloatArray]  # [num_blocks, num_bytes] -> [num_blocks, block]


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    encoding: _Encoding
    shape: tuple[int, ...]  # row-major, as numpy writes it
    offset: int  # bytes from the start of the data section


class GGUFFile:
    """One GGUF file of version 2 or 3, little-endian, mapped into memory.

    `metadata` holds the key-value pairs; `names` the tensors in file order.
    """

    def __init__(self, path: Path) -> None:
        """Read the header of `path`.

        Raises:
            BaseModelError: it is not a GGUF file of a known version, it is cut short, or a tensor has a type that
                this reader does not decode.
        """
        self._path = path
        if path.stat().st_size < len(_MAGIC):
            raise BaseModelError(f"{path} is not a GGUF file")
        self._data: ByteArray = np.memmap(path, dtype=np.uint8, mode="r")
        self._at = 0
        if bytes(self._take(len(_MAGIC))) != _MAGIC:
            raise BaseModelError(f"{path} is not a GGUF file")
        version = self._scalar("I")
        if version not in (2, 3):
            raise BaseModelError(f"{path} is GGUF version {version}; versions 2 and 3 are known")
        num_tensors, num_pairs = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_pairs):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        self._tensors = dict(self._tensor_info() for _ in range(num_tensors))
        alignment = self.metadata.get("general.alignment", 32)
        self._start = -(-self._at // alignment) * alignment

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in file order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the row-major shape of tensor `name`."""
        return self._tensors[name].shape

    def tensor(self, name: str) -> FloatArray:
        """Return tensor `name` decoded to float32, in its row-major shape.

        Raises:
            BaseModelError: the file ends before the tensor does.
        """
        info = self._tensors[name]
        num_blocks = math.prod(info.shape) // info.encoding.block
        self._at = self._start + info.offset
        blocks = self._take(num_blocks * info.encoding.num_bytes).reshape(num_blocks, info.encoding.num_bytes)
        return info.encoding.decode(blocks).reshape(info.shape)

    def _take(self, num_bytes: int) -> ByteArray:
        end = self._at + num_bytes
        if end > len(self._data):
            raise BaseModelError(f"{self._path} is cut short: {len(self._data)} bytes, needs {end}")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, bytes(self._take(struct.calcsize("<" + code))))[0]

    def _string(self) -> str:
        return bytes(self._take(self._scalar("Q"))).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._scalar("I"), self._scalar("Q")
            return [self._value(element) for _ in range(count)]
        if kind not in _SCALARS:
            raise BaseModelError(f"{self._path} holds a metadata value of unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _tensor_info(self) -> tuple[str, _TensorInfo]:
        name = self._string()
        # The file names the fastest-running dimension first.
        shape = tuple(reversed([self._scalar("Q") for _ in range(self._scalar("I"))]))
        kind, offset = self._scalar("I"), self._scalar("Q")
        if kind not in _ENCODINGS:
            raise BaseModelError(f"{self._path}: tensor {name} has ggml type {kind}, which is not decoded here")
        return name, _TensorInfo(_ENCODINGS[kind], shape, offset)


def _half(column: ByteArray) -> FloatArray:
    """Return `[n, 2]` bytes as `[n, 1]` float16 numbers widened to float32."""
    return np.ascontiguousarray(column).view("<f2").astype(np.float32)


def _decode_f32(blocks: ByteArray) -> FloatArray:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _decode_q8_0(blocks: ByteArray) -> FloatArray:
    """A float16 scale, then 32 signed bytes."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks[:, :2])


def _decode_q4_1(blocks: ByteArray) -> FloatArray:
    """A float16 scale, a float16 minimum, then 16 bytes: low halves are weights 0-15, high halves 16-31."""
    halves = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return halves.astype(np.float32) * _half(blocks[:, :2]) + _half(blocks[:, 2:4])


_ENCODINGS = {
    0: _Encoding(1, 4, _decode_f32),
    3: _Encoding(_BLOCK, 4 + _BLOCK // 2, _decode_q4_1),
    8: _Encoding(_BLOCK, 2 + _BLOCK, _decode_q8_0),
}
