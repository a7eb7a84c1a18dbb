"""The form of torch.save before torch 1.6: five pickles, then the storages (torch/serialization.py, legacy)."""

from __future__ import annotations

import struct
from typing import Any

from server.convert.opcodes import interpret
from server.convert.tensors import ITEM_BYTES, Storage
from server.formats.strict_json import Malformed

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
_VERSION = b"\x80\x02M\xe9\x03."  # the pickle of 1001


def is_legacy(data: memoryview) -> bool:
    """Whether the file begins as torch before 1.6 began it."""
    return bytes(data[: len(_MAGIC)]) == _MAGIC


def read_legacy(data: memoryview) -> tuple[Any, dict[str, memoryview]]:
    """Return what was saved, and the bytes of its storages by key. Raises Malformed."""
    at = len(_MAGIC) + len(_VERSION)
    if bytes(data[len(_MAGIC) : at]) != _VERSION:
        raise Malformed("it is of a form of torch.save that is older than 2017: save it again with a newer torch")
    machine = interpret(data[at:])
    at += machine.length
    if not isinstance(machine.root, dict) or machine.root.get("little_endian") is not True:
        raise Malformed("its numbers are not little-endian: save it again on a little-endian machine")
    saved = interpret(data[at:])
    at += saved.length
    keys = interpret(data[at:])
    return saved.root, _cut(data, at + keys.length, keys.root, saved.storages)


def _cut(data: memoryview, at: int, keys: Any, storages: dict[str, Storage]) -> dict[str, memoryview]:
    """Cut the bytes after the pickles: for every key the number of elements, then the elements."""
    found: dict[str, memoryview] = {}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Malformed("its list of storages is no list of names")
    for key in keys:
        if key not in storages or key in found:
            raise Malformed("its list of storages names one that no tensor uses, or one twice")
        start = at + 8
        if start > len(data):
            raise Malformed("it is cut off before its last storage")
        (numel,) = struct.unpack("<q", data[at:start])
        at = start + numel * ITEM_BYTES[storages[key].dtype]
        if numel < 0 or at > len(data):
            raise Malformed("a storage claims more bytes than the file has")
        found[key] = data[start:at]
    if at != len(data):
        raise Malformed("it goes on after its last storage")
    return found
