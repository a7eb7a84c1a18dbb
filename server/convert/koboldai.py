"""KoboldAI's soft prompts: a zip of `tensor.npy` [virtual tokens, hidden] and `meta.json`.

KoboldAI/KoboldAI-Client, fileops.py and prompt_tuner.py; VE-FORBRYDERNE/mtj-softtuner before it. The array is float16,
float32, or bfloat16 as pairs of bytes ("V2"). Of numpy's format (numpy/lib/format.py) only the one header that numpy
writes for such an array is read, by a pattern: numpy's own parser takes any Python literal.
"""

from __future__ import annotations

import re
from typing import Any, BinaryIO

from server.convert.adapter import Adapter, soft_prompt
from server.convert.tensors import Storage, Tensor, make_view, resolve
from server.convert.zips import read_member, read_members
from server.formats.strict_json import MAX_BYTES, Malformed, parse_object, shown

MAX_TENSOR_BYTES = 256 * 1024 * 1024
"""KoboldAI takes under 2,048 tokens; as float32 of hidden size 20,480 they have 160 MiB."""

_MAGIC = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}
"""How many bytes of header length follow the magic and version."""

_MAX_HEADER = 1024
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \(([0-9]{1,12}), ([0-9]{1,12})\), \} *\n"
)
_DTYPES = {b"<f4": "F32", b"<f2": "F16", b"|V2": "BF16", b"<V2": "BF16"}


def convert_koboldai(file: BinaryIO, size: int) -> Adapter:
    """Return the soft prompt in a zip of `size` bytes, with what meta.json says of it as notes. Raises Malformed."""
    members = read_members(file, size)
    if "tensor.npy" not in members:
        raise Malformed("the zip has no tensor.npy at its top, so it is no soft prompt of KoboldAI")
    table = _table(memoryview(read_member(file, members["tensor.npy"], MAX_TENSOR_BYTES)))
    notes: tuple[str, ...] = ()
    if "meta.json" in members:
        try:
            notes = _notes(parse_object(bytes(read_member(file, members["meta.json"], MAX_BYTES))))
        except Malformed as error:
            # KoboldAI takes such files too: nothing in it changes what the virtual tokens do.
            notes = (f"meta.json is left out: {error}",)
    return soft_prompt(table, notes)


def _table(data: memoryview) -> Tensor:
    length_bytes = _MAGIC.get(bytes(data[:8]))
    if length_bytes is None:
        raise Malformed("tensor.npy is no array of numpy's format 1 or 2")
    start = 8 + length_bytes
    length = int.from_bytes(data[8:start], "little")
    header = bytes(data[start : start + min(length, _MAX_HEADER)])
    match = _HEADER.fullmatch(header)
    if match is None:
        raise Malformed(f"tensor.npy is no array of two dimensions; its header is {shown(header)}")
    dtype = _DTYPES.get(match[1])
    if dtype is None:
        raise Malformed(
            f"tensor.npy has dtype {shown(match[1].decode('latin-1'))}; needed is float16, float32 or bfloat16 as V2, "
            "little-endian"
        )
    shape = int(match[3]), int(match[4])
    strides = (1, shape[0]) if match[2] == b"True" else (shape[1], 1)
    view = make_view(Storage(dtype, "tensor.npy", shape[0] * shape[1]), 0, shape, strides)
    return resolve(view, data[start + length :])


def _notes(meta: dict[str, Any]) -> tuple[str, ...]:
    """Who made it, and for which models: worth knowing before it is published."""
    said = {key: meta[key] for key in ("name", "author", "description", "supported") if meta.get(key)}
    return tuple(f"{key}: {shown(value)}" for key, value in said.items())
