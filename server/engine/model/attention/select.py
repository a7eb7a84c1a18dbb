"""Make an attention backend by its name."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from server.engine.model.attention.base import AttentionBackend, KVShape
from server.engine.model.attention.buffers import BatchSize
from server.engine.model.attention.cpu import CpuBackend
from server.engine.model.attention.native import BLOCK_SIZE, NativeBackend
from server.engine.model.attention.reference import ReferenceBackend
from server.engine.model.attention.triton import BLOCK_SIZE as TRITON_BLOCK_SIZE
from server.engine.model.attention.triton import TritonBackend

_BACKENDS: MappingProxyType[str, tuple[Callable[[KVShape], AttentionBackend], int]] = MappingProxyType(
    {
        "reference": (ReferenceBackend, 64),
        "cpu": (CpuBackend, 64),
        "native": (NativeBackend, BLOCK_SIZE),
        "triton": (TritonBackend, TRITON_BLOCK_SIZE),
    }
)


def block_size(name: str) -> int:
    """Return the tokens of a block that the backend wants. Raises ValueError for a name that is none."""
    return _entry(name)[1]


def create_backend(name: str, shape: KVShape, size: BatchSize | None = None) -> AttentionBackend:
    """Make the backend and its KV memory; `size` bounds what one forward holds, where a backend wants to know.

    Raises ValueError for a name that is none.
    """
    make = _entry(name)[0]
    return TritonBackend(shape, size) if make is TritonBackend else make(shape)


def _entry(name: str) -> tuple[Callable[[KVShape], AttentionBackend], int]:
    if name not in _BACKENDS:
        raise ValueError(f"no attention backend is called {name!r}; there are {', '.join(_BACKENDS)}")
    return _BACKENDS[name]
