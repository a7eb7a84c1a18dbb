"""Read what torch.save wrote: the zip form (since torch 1.6) and the one before it, by a reader of our own.

The form is that of torch/serialization.py. Values are never copied here: tensors are views of the mapped file.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

from server.convert import torch_legacy
from server.convert.opcodes import MAX_BYTES, interpret
from server.convert.tensors import Tensor, View, resolve
from server.convert.zips import Member, read_members
from server.formats.strict_json import Malformed, shown

Found = TypeVar("Found")

_STORAGE = re.compile(r"data/([0-9]{1,20})")
_KNOWN = re.compile(r"data\.pkl|byteorder|version|data/[0-9]{1,20}|\..{1,100}")
"""torch.save's members below the top folder; those with a dot are newer notes about the file, not about tensors."""


@dataclass(slots=True)
class TorchFile:
    """One file: `root` is what was saved, with views for tensors; `tensor` finds a view's values."""

    root: Any
    _bytes_of: Callable[[str], memoryview]
    _seen: dict[str, memoryview] = field(default_factory=dict)

    def tensor(self, view: View) -> Tensor:
        """Return the values that `view` describes. Raises Malformed where the file does not have them."""
        key = view.storage.key
        if key not in self._seen:
            self._seen[key] = self._bytes_of(key)
        return resolve(view, self._seen[key])


def read_torch_file(file: BinaryIO, data: memoryview) -> TorchFile:
    """Read a file that torch.save wrote; `data` are its bytes. Raises Malformed for everything else."""
    if not data:
        raise Malformed("the file is empty")
    if bytes(data[:4]) == b"PK\x03\x04":
        return _read_zip(file, data)
    if torch_legacy.is_legacy(data):
        root, storages = torch_legacy.read_legacy(data)
        return TorchFile(root, lambda key: _found(storages, key))
    if bytes(data[:1]) == b"\x80":
        raise Malformed("it is a bare Python pickle, not a file of torch.save")
    raise Malformed("it is not a file of torch.save: it begins neither as a zip nor as one of before torch 1.6")


def _read_zip(file: BinaryIO, data: memoryview) -> TorchFile:
    members = _below_top(read_members(file, len(data)))
    if "data.pkl" not in members:
        raise Malformed("it is a zip without data.pkl, so torch.save did not write it")
    for name, member in members.items():
        if name.startswith("code/") or name == "constants.pkl":
            raise Malformed("it is a TorchScript model, which holds code: save the tensors alone with torch.save")
        if not _KNOWN.fullmatch(name):
            raise Malformed(f"it holds {shown(name)}, which torch.save does not write")
        if not member.stored:
            raise Malformed(f"its {shown(name)} is compressed, and torch.save stores it: save it again with torch.save")
    if "byteorder" in members and bytes(_stored(data, members["byteorder"])) != b"little":
        raise Malformed("its numbers are not little-endian: save it again on a little-endian machine")
    pickled = _stored(data, members["data.pkl"])
    if len(pickled) > MAX_BYTES:
        raise Malformed(f"its data.pkl has {len(pickled):,} bytes, more than the {MAX_BYTES:,} allowed")
    saved = interpret(pickled)
    if saved.length != len(pickled):
        raise Malformed("its data.pkl goes on after its end")
    storages = {match[1]: member for name, member in members.items() if (match := _STORAGE.fullmatch(name))}
    return TorchFile(saved.root, lambda key: _stored(data, _found(storages, key)))


def _below_top(members: dict[str, Member]) -> dict[str, Member]:
    """Take off the one folder around everything; it is named after the file that torch wrote."""
    tops = {name.partition("/")[0] for name in members}
    if len(tops) != 1 or not all("/" in name for name in members):
        raise Malformed("its members do not all lie in one folder, so torch.save did not write it")
    return {name.partition("/")[2]: member for name, member in members.items()}


def _found(storages: dict[str, Found], key: str) -> Found:
    if key not in storages:
        raise Malformed(f"a tensor's storage {key!r} is not in the file")
    return storages[key]


def _stored(data: memoryview, member: Member) -> memoryview:
    found = data[member.offset : member.offset + member.info.file_size]
    if zlib.crc32(found) != member.info.CRC:
        raise Malformed(f"{shown(member.name)} is damaged: its checksum is wrong")
    return found
