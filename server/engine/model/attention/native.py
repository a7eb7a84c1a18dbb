"""Attention on the CPU in compiled code, behind any model; its KV memory and plan also serve the compiled decoder."""

from __future__ import annotations

import ctypes
import struct
import uuid
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.model.attention.base import KVShape, Row
from server.engine.native.library import NativeLibrary, load

BLOCK_SIZE = 32
"""Tokens; the kernels know no other."""

_MAX_HEAD_DIM = 256
_HEAD_STEP = 32
_ROW = struct.Struct("=4i2Q")

Table = tuple[tuple[int, ...], "array[int]"]


class _Memory(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("layers", "blocks", "kv_heads", "head_dim", "padded")),
    )


class _LayerAttention(ctypes.Structure):
    _fields_ = (
        ("heads", ctypes.c_int32),
        ("scaling", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("softcap", ctypes.c_float),
        ("sinks", ctypes.c_void_p),
    )


def padded_head_dim(head_dim: int) -> int:
    """Return the dimensions that a head takes in the memory."""
    return -(-head_dim // _HEAD_STEP) * _HEAD_STEP


class NativeBackend:
    """KV memory [num_layers, num_blocks, num_kv_heads, 2, block_size * padded head_dim] in the kernels' own order.

    A query's result is bitwise the same alone and in any batch, and however its prompt was cut into steps.
    """

    def __init__(self, shape: KVShape, library: NativeLibrary | None = None) -> None:
        """Make the memory, cleared. Raises ValueError for a shape that the kernels do not know, NativeUnavailable."""
        if shape.device.type != "cpu" or shape.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the native backend holds float32 and bfloat16 on the CPU, not {shape.dtype}")
        if shape.block_size != BLOCK_SIZE or not 1 <= shape.head_dim <= _MAX_HEAD_DIM:
            raise ValueError(
                f"the native backend has blocks of {BLOCK_SIZE} tokens and heads of at most {_MAX_HEAD_DIM} dimensions"
            )
        self.name = f"waybill_native_{uuid.uuid4().hex}"
        self.shape = shape
        self.library = library or load(torch.get_num_threads())
        self._lib = _declared(self.library.lib)
        padded = padded_head_dim(shape.head_dim)
        self._storage = torch.empty(
            (shape.num_layers, shape.num_blocks, shape.num_kv_heads, 2, BLOCK_SIZE * padded), dtype=shape.dtype
        )
        self._lib.waybill_prefer_large_pages(self._storage.data_ptr(), self._storage.nbytes)
        self._storage.zero_()
        self._memory = _Memory(
            self._storage.data_ptr(), shape.num_layers, shape.num_blocks, shape.num_kv_heads, shape.head_dim, padded
        )
        self.plan = ctypes.c_void_p(self._lib.waybill_plan_create(shape.num_kv_heads, self.library.threads))
        self._scratch = ctypes.c_void_p(self._lib.waybill_scratch_create())
        self._tables: dict[int, Table] = {}
        self._num_tokens = 0

    def __del__(self) -> None:
        if hasattr(self, "_scratch"):
            self._lib.waybill_plan_destroy(self.plan)
            self._lib.waybill_scratch_destroy(self._scratch)

    @property
    def memory(self) -> Any:
        """The memory as the kernels take it."""
        return ctypes.byref(self._memory)

    def begin(self, rows: Sequence[Row]) -> None:
        """Describe the next forward. A tuple of blocks that the last step had too is not read again."""
        tables: dict[int, Table] = {}
        packed = bytearray(_ROW.size * len(rows))
        for index, row in enumerate(rows):
            own, prefix = self._table(row.blocks, tables), self._table(row.prefix_blocks, tables)
            _ROW.pack_into(packed, index * _ROW.size, row.offset, row.count, row.start, row.prefix_len, own, prefix)
        self._tables = tables
        self._lib.waybill_plan_build(self.plan, (ctypes.c_char * len(packed)).from_buffer(packed), len(rows))

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Write this layer's keys and values, then attend (see `AttentionBackend`)."""
        q, k, v = (part[0].transpose(0, 1).to(self.shape.dtype).contiguous() for part in (query, key, value))
        sinks = None if s_aux is None else s_aux.detach().float().contiguous()
        settings = _LayerAttention(
            query.shape[1],
            query.shape[-1] ** -0.5 if scaling is None else scaling,
            sliding_window or 0,
            softcap or 0.0,
            None if sinks is None else sinks.data_ptr(),
        )
        output = torch.empty_like(q)
        self._lib.waybill_attend(
            self.library.pool,
            self.plan,
            self.memory,
            self._scratch,
            self.shape.dtype.itemsize,
            int(module.layer_idx),  # type: ignore[arg-type]
            ctypes.byref(settings),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            output.data_ptr(),
        )
        return output[None].to(query.dtype), None

    def zero(self, blocks: Sequence[int]) -> None:
        """Clear blocks in every layer."""
        table = array("i", blocks)
        self._lib.waybill_zero(self.memory, self.shape.dtype.itemsize, table.buffer_info()[0], len(table))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy a block's first `tokens` tokens to another in every layer, and clear the rest of that."""
        self._lib.waybill_copy(self.memory, self.shape.dtype.itemsize, source, target, tokens)

    def install(self, blocks: Sequence[int], prefix: Tensor) -> None:
        """Copy a prefix KV [num_layers, 2, num_kv_heads, length, head_dim] into blocks, from their start."""
        prefix = prefix.to(self.shape.dtype).contiguous()
        length = prefix.shape[3]
        if length > len(blocks) * BLOCK_SIZE:
            raise ValueError(f"{len(blocks)} blocks do not hold a prefix of {length} tokens")
        table = array("i", blocks)
        self._lib.waybill_install(
            self.memory, self.shape.dtype.itemsize, table.buffer_info()[0], prefix.data_ptr(), length
        )

    def _table(self, blocks: tuple[int, ...], tables: dict[int, Table]) -> int:
        """Return where the blocks' numbers lie in memory, for as long as `tables` lives."""
        if not blocks:
            return 0
        held = tables.get(id(blocks))
        if held is None:
            held = self._tables.get(id(blocks))
            if held is None or held[0] is not blocks:
                held = (blocks, array("i", blocks))
            tables[id(blocks)] = held
        return held[1].buffer_info()[0]


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int
    lib.waybill_plan_create.restype = lib.waybill_scratch_create.restype = pointer
    lib.waybill_plan_create.argtypes = [number, number]
    lib.waybill_plan_build.argtypes = [pointer, pointer, number]
    lib.waybill_prefer_large_pages.argtypes = [pointer, ctypes.c_size_t]
    lib.waybill_attend.argtypes = [*(pointer,) * 4, number, number, *(pointer,) * 5]
    lib.waybill_install.argtypes = [pointer, number, pointer, pointer, number]
    lib.waybill_zero.argtypes = [pointer, number, pointer, number]
    lib.waybill_copy.argtypes = [pointer, number, number, number, number]
    for name in ("prefer_large_pages", "plan_build", "attend", "install", "zero", "copy"):
        getattr(lib, f"waybill_{name}").restype = None
    for name in ("plan_destroy", "scratch_destroy"):
        getattr(lib, f"waybill_{name}").argtypes = [pointer]
        getattr(lib, f"waybill_{name}").restype = None
    return lib
