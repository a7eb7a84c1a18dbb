"""Load the kernels that fit this processor, building them where they are not built yet."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass, field
from pathlib import Path

from server.engine.native.build import BuildFailed, Variant, Workshop, usable_variants

_log = logging.getLogger(__name__)


class NativeUnavailable(Exception):
    """There are no compiled kernels for this machine; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class NativeLibrary:
    """The kernels of one instruction set, and a pool of threads for them."""

    isa: str
    path: Path
    lib: ctypes.CDLL = field(repr=False)
    pool: ctypes.c_void_p = field(repr=False)
    threads: int


def load(threads: int, isa: str | None = None, workshop: Workshop | None = None) -> NativeLibrary:
    """Return the fastest kernels that this processor can run, or those of `isa`, with a pool of `threads` threads.

    They come from `workshop`, by default the package's own folder, the user's cache and this machine's compiler.

    The pool lives as long as the process. Raises NativeUnavailable.
    """
    usable = [variant for variant in usable_variants() if isa in (None, variant.name)]
    if not usable:
        raise NativeUnavailable(
            f"this processor lacks the instruction set {isa}" if isa else "no kernels fit this processor"
        )
    workshop = workshop or Workshop()
    reasons: list[str] = []
    for variant in usable:
        try:
            return _open(variant, threads, workshop)
        except (BuildFailed, OSError) as error:
            reasons.append(f"{variant.name}: {error}")
    raise NativeUnavailable("; ".join(dict.fromkeys(reasons)))


def _open(variant: Variant, threads: int, workshop: Workshop) -> NativeLibrary:
    path = workshop.find(variant)
    if path is None:
        _log.info("compiling the CPU kernels for %s; this happens once", variant.name)
        path = workshop.build(variant)
    lib = ctypes.CDLL(str(path))
    lib.waybill_pool_create.restype = ctypes.c_void_p
    lib.waybill_pool_create.argtypes = [ctypes.c_int]
    lib.waybill_prepare.restype = ctypes.c_int
    lib.waybill_prepare.argtypes = []
    if lib.waybill_prepare() != 0:
        raise OSError("the system does not let this process use these instructions")
    return NativeLibrary(variant.name, path, lib, ctypes.c_void_p(lib.waybill_pool_create(threads)), threads)
