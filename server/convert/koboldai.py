"""KoboldAI's soft prompts: a zip of `tensor.npy` [virtual tokens, hidden] and `meta.json`.

KoboldAI/KoboldAI-Client, fileops.py and prompt_tuner.py. The array is float16, float32, or bfloat16 as raw pairs of bytes
("V2"); its header is read by numpy's own parser, its values are taken as they lie.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np

from server.convert.adapter import Adapter, soft_prompt
from server.convert.tensors import NUMPY_DTYPES, Tensor
from server.convert.zips import read_member, read_members
from server.formats.strict_json import MAX_BYTES, Malformed, parse_object, shown

MAX_TENSOR_BYTES = 512 * 1024 * 1024
"""KoboldAI takes under 2,048 tokens; as float32 of hidden size 20,480 they have 160 MiB."""

_DTYPES = {"<f4": "F32", "<f2": "F16", "|V2": "BF16"}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_NOTE = 200


def convert_koboldai(file: BinaryIO, size: int) -> Adapter:
    """Return the soft prompt in a zip of `size` bytes, with what meta.json says of it as notes. Raises Malformed."""
    members = read_members(file, size)
    if "tensor.npy" not in members:
        raise Malformed("the zip has no tensor.npy at its top, so it is no soft prompt of KoboldAI")
    table = _table(read_member(file, members["tensor.npy"], MAX_TENSOR_BYTES))
    notes: tuple[str, ...] = ()
    if "meta.json" in members:
        try:
            notes = _notes(parse_object(read_member(file, members["meta.json"], MAX_BYTES)))
        except Malformed as error:
            # KoboldAI takes such files too: nothing in it changes what the virtual tokens do.
            notes = (f"meta.json is left out: {error}",)
    return soft_prompt(table, notes)


def _table(data: bytes) -> Tensor:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, dtype = _HEADERS[version](stream)
    except (ValueError, KeyError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed("tensor.npy has no header that numpy understands") from error
    if dtype.str not in _DTYPES:
        raise Malformed(
            f"tensor.npy has dtype {shown(dtype.str)}; needed is float16, float32 or bfloat16 as V2, little-endian"
        )
    name = _DTYPES[dtype.str]
    if len(shape) != 2 or min(shape) < 1:
        raise Malformed(f"tensor.npy has shape {shown(list(shape))}; needed is [virtual tokens, hidden size]")
    values = data[stream.tell() :]
    if shape[0] * shape[1] * dtype.itemsize != len(values):
        raise Malformed(f"tensor.npy of shape {list(shape)} and dtype {name} has {len(values):,} bytes of values")
    order = "F" if fortran else "C"
    return Tensor(name, np.frombuffer(values, dtype=NUMPY_DTYPES[name]).reshape(shape, order=order))


def _notes(meta: dict[str, Any]) -> tuple[str, ...]:
    """Who made it, and for which models: worth knowing before it is published."""
    found = []
    for key in ("name", "author", "description", "supported"):
        value = meta.get(key)
        text = ", ".join(str(item) for item in value) if isinstance(value, list) else value
        if isinstance(text, str) and text:
            found.append(f"{key}: {text[:_MAX_NOTE]}")
    return tuple(found)
