"""Files that no tool would write: pickles, zips and arrays made by hand, wrong in one respect each."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from server.convert.sources import SourceKind

START, STOP = b"\x80\x02", b"."
MARKER = "it-ran"
"""A file that appears in the current folder where an attack's code runs."""


class Runs:
    """Pickled, it calls a function of a stranger's choice when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


RUNS_SYSTEM = Runs(os.system, f"touch {MARKER}")
RUNS_EVAL = Runs(eval, f"__import__('os').system('touch {MARKER}')")


def saved(value: object, *, old: bool = False) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def members(pickled: bytes, values: bytes = bytes(64), **more: bytes) -> bytes:
    """A zip as torch.save writes it, of a pickle made by hand and one storage."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", values)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def text(value: str) -> bytes:
    """The opcode of a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    """The opcodes of an integer: any that fits 64 bits."""
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def numbers(values: tuple[int, ...]) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(numel: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """A storage of 16 floats in `members` says 16."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(numel) + b"tQ"


def view(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, numel: int = 16, *, of: bytes | None = None
) -> bytes:
    """A tensor's opcodes."""
    start = b"ctorch._utils\n_rebuild_tensor_v2\n("
    where = (storage(numel) if of is None else of) + number(offset) + numbers(shape) + numbers(strides)
    return start + where + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tR"


def pickled(*opcodes: bytes) -> bytes:
    """A pickle of these opcodes."""
    return START + b"".join(opcodes) + STOP


def tensor(*arguments: tuple[int, ...] | int) -> bytes:
    """A file of torch.save with one tensor, described by hand."""
    return members(pickled(view(*arguments)))  # type: ignore[arg-type]


def with_entry(data: bytes, field: int, layout: str, *values: int) -> bytes:
    """A zip whose last central directory entry has other bytes at an offset (APPNOTE.TXT 4.3.12)."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, data.rindex(b"PK\x01\x02") + field, *values)
    return bytes(changed)


def zipped(packed: int = zipfile.ZIP_STORED, **files: bytes) -> bytes:
    """A zip; names are given with "__" for a dot."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packed) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return stream.getvalue()


def npy(header: str, values: bytes = b"", length: int | None = None) -> bytes:
    """An array of numpy's format with this header."""
    data = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data) if length is None else length) + data + values


def described(shape: str, descr: str = "<f4") -> str:
    """The header that numpy writes."""
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"


def object_array() -> bytes:
    """An array of objects, which numpy pickles."""
    stream = io.BytesIO()
    np.save(stream, np.array([[RUNS_SYSTEM]], dtype=object), allow_pickle=True)
    return stream.getvalue()


def huge_dictionary() -> bytes:
    """LZMA that asks for a dictionary of 4 GiB before the first byte (APPNOTE.TXT 5.8.8: after version and size)."""
    data = bytearray(zipped(zipfile.ZIP_LZMA, tensor__npy=npy(described("(4, 4)"), bytes(64))))
    struct.pack_into("<I", data, 30 + len("tensor.npy") + 4 + 1, 0xFFFFFFFF)
    return bytes(data)


def claims(data: bytes, size: int) -> bytes:
    """A zip of one member whose headers both claim this many bytes."""
    changed = bytearray(data)
    struct.pack_into("<I", changed, 22, size)
    return with_entry(bytes(changed), 24, "<I", size)


def bomb(packed: int = zipfile.ZIP_LZMA) -> bytes:
    """An array of four numbers, with 20 MB of zeros behind them in 3 kB."""
    return zipped(packed, tensor__npy=npy(described("(2, 2)"), bytes(20_000_000)))


GOOD = saved(torch.ones(4, 4))
OLD = saved(torch.ones(4, 4), old=True)
NESTED = b"K\x01" + b"\x85" * 90_000
LAUGHS = b"(]q\x00" + b"h\x00h\x00\x86q\x00" * 200 + b"t"
"""A tuple twice in a tuple, twice in a tuple … : 2^200 lists, had anyone to look at all of them."""

Attack = tuple[str, Callable[[], bytes], str]

CODE: Mapping[str, Attack] = {
    "os.system": ("decoder.pt", lambda: saved(RUNS_SYSTEM), r"it names 'posix\.system', .* could run code"),
    "builtins.eval": ("decoder.pt", lambda: saved(RUNS_EVAL), r"it names '__builtin__\.eval', .* could run code"),
    "os.system, old form": ("decoder.pt", lambda: saved(RUNS_SYSTEM, old=True), r"it names 'posix\.system'"),
    "beside a tensor": ("cache_last.pt", lambda: saved({"a": torch.ones(4), "b": RUNS_SYSTEM}), r"'posix\.system'"),
    "a bare pickle": ("decoder.pt", lambda: pickle.dumps(RUNS_SYSTEM, 2), "a bare Python pickle"),
    "another protocol": (
        "decoder.pt",
        lambda: members(pickle.dumps(RUNS_SYSTEM, 4)),
        "not of protocol 2",
    ),
    "an array of objects": ("a.zip", lambda: zipped(tensor__npy=object_array()), r"has dtype '\|O'"),
    "code in an array's header": (
        "a.zip",
        lambda: zipped(tensor__npy=npy(f"__import__('os').system('touch {MARKER}')")),
        "no array of two dimensions; its header is",
    ),
}
"""Files that run code where they are read by what they are made for."""

BOMBS: Mapping[str, Attack] = {
    "nested deep": ("decoder.pt", lambda: members(pickled(NESTED)), "it holds no tensor"),
    "a billion laughs": ("decoder.pt", lambda: members(pickled(LAUGHS)), "it holds no tensor"),
    "too many opcodes": ("decoder.pt", lambda: members(pickled(NESTED * 2)), "more than 100,000 opcodes"),
    "a huge pickle": ("decoder.pt", lambda: members(pickled(text("x" * 5_000_000))), "5,000,008 bytes, more than"),
    "a huge array": ("a.zip", lambda: claims(bomb(8), 0xF0000000), "4,026,531,840 bytes, more than the 268,435,456"),
    "a bomb under a small claim": ("a.zip", lambda: claims(bomb(), 100), r"tensor\.npy' in the zip is damaged"),
    "a bomb": ("a.zip", bomb, "but the file has 20,000,000 for it"),
    "a huge LZMA dictionary": ("a.zip", huge_dictionary, "takes more memory|is damaged"),
    "a huge tensor": ("decoder.pt", lambda: tensor((2**24, 2**24), (2**24, 1), 0, 2**47), "claims 140,737,488,355,328"),
    "a huge view": ("decoder.pt", lambda: tensor((2**40, 4), (0, 1)), "repeats the elements of its storage"),
}
"""Small files that ask for much time or memory."""


def _same_storage_twice() -> bytes:
    two = view((4,), (1,)) + view((4,), (1,), of=storage(16, kind="HalfStorage"))
    return members(pickled(b"(", two, b"t"))


def _overlapping() -> bytes:
    """Two entries of the central directory that mean the same bytes."""
    data = zipped(a__bin=bytes(4000), b__bin=b"")
    first = data.index(b"PK\x01\x02")
    entry = data[first : data.rindex(b"PK\x01\x02")]
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, 2 * len(entry), first, 0)
    return data[:first] + entry + entry + end


def _many() -> bytes:
    return zipped(**{f"archive/data/{index}": b"" for index in range(9000)})


MALFORMED: Mapping[str, Attack] = {
    "empty": ("decoder.pt", lambda: b"", "the file is empty"),
    "text": ("decoder.pt", lambda: b"hello", "is not a file of torch.save"),
    "another magic": ("decoder.pt", lambda: b"\x93NUMPY" + GOOD, "is not a file of torch.save"),
    "cut off": ("decoder.pt", lambda: GOOD[:-100], "is cut off"),
    "half": ("decoder.pt", lambda: GOOD[: len(GOOD) // 2], "is cut off"),
    "something behind it": ("decoder.pt", lambda: GOOD + b"PK", "has something before or after the zip"),
    "something before it": ("decoder.pt", lambda: b"#!/bin/sh\n" + GOOD, "is not a file of torch.save"),
    "old, cut off": ("decoder.pt", lambda: OLD[:-1], "claims more bytes than the file has"),
    "old, cut off early": ("decoder.pt", lambda: OLD[:200], "its pickle names something that is no name"),
    "old, something behind it": ("decoder.pt", lambda: OLD + b"x", "goes on after its last storage"),
    "old, negative storage": (
        "decoder.pt",
        lambda: OLD[:-72] + struct.pack("<q", -1) + OLD[-64:],
        "claims more bytes than the file has",
    ),
    "old, big-endian": (
        "decoder.pt",
        lambda: OLD.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        "not little-e",
    ),
    "big-endian": ("decoder.pt", lambda: GOOD.replace(b"little", b"biglit"), "is damaged|not little-endian"),
    "a changed value": ("decoder.pt", lambda: GOOD.replace(b"\0\0\x80?", b"\0\0\x81?", 1), "is damaged: its checksum"),
    "no pickle": ("decoder.pt", lambda: zipped(a=b""), "do not all lie in one folder"),
    "packed pickle": ("decoder.pt", lambda: zipped(8, **{"a/data.pkl": b"x" * 99}), "is compressed"),
    "TorchScript": (
        "decoder.pt",
        lambda: members(pickled(b"N"), **{"code/a.py": b""}),
        "TorchScript model, which holds",
    ),
    "another file": ("decoder.pt", lambda: members(pickled(b"N"), **{"evil.py": b""}), r"holds 'evil\.py'"),
    "a file twice": (
        "decoder.pt",
        lambda: zipped(a__pt=b"", b__pt=b"").replace(b"b.pt", b"a.pt"),
        "holds a file twice",
    ),
    "a path that leaves": ("a.zip", lambda: zipped(**{"../../tensor.npy": b""}), "points outside"),
    "an absolute path": ("a.zip", lambda: zipped(**{"/tensor.npy": b""}), "points outside"),
    "encrypted": ("a.zip", lambda: with_entry(zipped(tensor__npy=b""), 8, "<H", 1), "is encrypted"),
    "another name inside": ("a.zip", lambda: zipped(tensor__npy=b"").replace(b"tensor", b"sensor", 1), "another name"),
    "overlapping members": ("a.zip", _overlapping, "overlap"),
    "too many members": ("decoder.pt", _many, "the zip has 9,000 members"),
    "a comment": ("a.zip", lambda: zipped(tensor__npy=b"")[:-2] + b"\x02\0hi", "no zip"),
    "foreign opcode": ("decoder.pt", lambda: members(pickled(text("os"), text("system"), b"\x93")), "STACK_GLOBAL"),
    "opcode INST": ("decoder.pt", lambda: members(pickled(b"(", text(f"touch {MARKER}"), b"iposix\nsystem\n")), "INST"),
    "opcode that is none": ("decoder.pt", lambda: members(pickled(b"\xff")), "the opcode 0xff"),
    "a dotted name": ("decoder.pt", lambda: members(pickled(b"ctorch\nserialization.os.system\n")), "which no file of"),
    "another's storage": ("decoder.pt", lambda: members(pickled(b"cos\nFloatStorage\n")), "which no file of tensors"),
    "an object of another class": (
        "decoder.pt",
        lambda: members(pickled(b"ccollections\nOrderedDict\n", text(MARKER), b"\x85\x81")),
        "makes an object other than a ParameterList",
    ),
    "a state for a tensor": ("decoder.pt", lambda: members(pickled(view((4,), (1,)), b"}b")), "gives a state to"),
    "arguments for a dict": (
        "decoder.pt",
        lambda: members(pickled(b"ccollections\nOrderedDict\n", b"]", b"\x85R")),
        "with 1 arguments",
    ),
    "a set with something in it": (
        "decoder.pt",
        lambda: members(pickled(b"c__builtin__\nset\n", b"]", text("x"), b"a\x85R")),
        "a set with something in it",
    ),
    "keys that are tensors": (
        "decoder.pt",
        lambda: members(pickled(b"}", view((4,), (1,)), b"Ns")),
        "keys are not text",
    ),
    "an empty stack": ("decoder.pt", lambda: members(pickled(b"\x86")), "off an empty stack"),
    "below a mark": ("decoder.pt", lambda: members(pickled(b"N(\x85")), "off an empty stack"),
    "marks without end": ("decoder.pt", lambda: members(pickled(b"(" * 10_000)), "nested deeper"),
    "a full stack": ("decoder.pt", lambda: members(pickled(b"N" * 30_000)), "nested deeper"),
    "no value": ("decoder.pt", lambda: members(pickled()), "in the middle of something"),
    "a pickle cut off": ("decoder.pt", lambda: members(pickled(b"N")[:-1]), "its pickle is cut off"),
    "a text cut off": ("decoder.pt", lambda: members(START + b"X\xff\xff\xff\xffabc."), "its pickle is cut off"),
    "a pickle behind it": ("decoder.pt", lambda: members(pickled(b"N") * 2), "goes on after its end"),
    "an unknown memo": ("decoder.pt", lambda: members(pickled(b"h\x07")), "refers to something that it has not said"),
    "a huge integer": ("decoder.pt", lambda: members(pickled(b"\x8a\xff" + b"\x7f" * 255)), "an integer over 64 bits"),
    "a storage that is not there": (
        "decoder.pt",
        lambda: members(pickled(view((4,), (1,), of=storage(16, "7")))),
        "'7' is not",
    ),
    "a storage elsewhere": (
        "decoder.pt",
        lambda: members(pickled(view((4,), (1,), of=storage(16, "../../etc/passwd")))),
        "refers to something outside of it in a form",
    ),
    "a storage in two ways": ("decoder.pt", _same_storage_twice, "describes the storage '0' in two ways"),
    "a larger storage": ("decoder.pt", lambda: tensor((4, 4), (4, 1), 0, 17), "but the file has 64 for it"),
    "offset beyond": ("decoder.pt", lambda: tensor((4, 4), (4, 1), 1), "reaches outside its storage of 16"),
    "shape beyond": ("decoder.pt", lambda: tensor((5, 4), (4, 1)), "reaches outside its storage of 16"),
    "stride beyond": ("decoder.pt", lambda: tensor((4, 4), (5, 1)), "reaches outside its storage of 16"),
    "huge offset": ("decoder.pt", lambda: tensor((4, 4), (4, 1), 2**60), "count more elements than a file can have"),
    "huge shape": ("decoder.pt", lambda: tensor((2**62, 4), (4, 1)), "count more elements than a file can have"),
    "negative offset": ("decoder.pt", lambda: tensor((4, 4), (4, 1), -4), r"a negative offset \(-4\)"),
    "negative shape": ("decoder.pt", lambda: tensor((-4, -4), (4, 1)), r"a negative shape \(-4\)"),
    "negative stride": ("decoder.pt", lambda: tensor((4, 4), (4, -1), 3), r"a negative stride \(-1\)"),
    "rows that overlap": ("decoder.pt", lambda: tensor((4, 4), (1, 1)), "repeats the elements of its storage"),
    "rows that are one": ("decoder.pt", lambda: tensor((4, 16), (0, 1)), "repeats the elements of its storage"),
    "many dimensions": ("decoder.pt", lambda: tensor((1,) * 64, (1,) * 64), "has 64 dimensions"),
    "strides missing": ("decoder.pt", lambda: tensor((4, 4), (4,)), "differ in number"),
    "a shape of truths": (
        "decoder.pt",
        lambda: members(pickled(view((4,), (1,)).replace(numbers((4,)), b"\x88\x85"))),
        "are no integers",
    ),
    "no numpy header": ("a.zip", lambda: zipped(tensor__npy=b"x" * 99), "no array of numpy's format"),
    "header beyond": (
        "a.zip",
        lambda: zipped(tensor__npy=npy(described("(4, 4)"), length=65535)),
        "the file has 0 for it",
    ),
    "array cut off": (
        "a.zip",
        lambda: zipped(tensor__npy=npy(described("(4, 4)"), bytes(63))),
        "the file has 63 for it",
    ),
    "array of huge shape": (
        "a.zip",
        lambda: zipped(tensor__npy=npy(described("(999999999999, 999999999999)"), bytes(64))),
        "claims 999,999,999,998,000,000,000,001 elements",
    ),
}
"""Files that contradict themselves."""

KINDS = {"decoder.pt": SourceKind.TGIS, "cache_last.pt": SourceKind.CARTRIDGE, "a.zip": SourceKind.KOBOLDAI}


def written(attack: Attack, folder: Path) -> Path:
    """Write the attack's file."""
    name, make, _ = attack
    path = folder / name
    path.write_bytes(make())
    return path
