"""The process that reads a stranger's file: `python -m server.convert.child REQUEST`, started by `isolation`.

It opens its files, then gives up the right to open any other: no file, no socket, no process can be made from there on.
Only then is the first byte of the file read. What comes of it is one line of JSON.
"""

from __future__ import annotations

import ast
import encodings.cp437
import encodings.idna
import io
import json
import linecache
import lzma
import resource
import sys
import tokenize
import traceback
from pathlib import Path
from typing import BinaryIO

import numpy as np

from server.convert.adapter import Adapter, write_safetensors
from server.convert.cartridge import convert_cartridge
from server.convert.koboldai import convert_koboldai
from server.convert.peft_bin import convert_peft_bin
from server.convert.sources import SourceKind
from server.convert.tgis import convert_tgis
from server.convert.torch_file import read_torch_file
from server.formats.judge import CONFIG, TENSORS
from server.formats.peft_config import MAX_BYTES
from server.formats.strict_json import Malformed

NEEDED_LATER = (ast, encodings.cp437, encodings.idna, linecache, lzma, tokenize, traceback)
"""What zipfile, numpy and a traceback import only when they need it, when nothing can be opened any more."""

_MEMORY = 2 * 2**30  # bytes: the interpreter, numpy, and the largest array of a zip unpacked
_MEMORY_PER_BYTE = 4  # the file mapped, its table, and that widened to float32
_FILE_BYTES = 2**30
_CPU_SECONDS = 60
_CPU_BYTES_PER_SECOND = 16 * 2**20


def main(request: str) -> None:
    """Convert as `request` says: {"kind", "file", "config" or null, "target"}, and print what came of it.

    That is {"notes": […]}, or {"rejected": "…"} with the reason. Anything unforeseen ends the process instead.
    """
    asked = json.loads(request)
    source, config_file = Path(asked["file"]), asked["config"]
    config = b"" if config_file is None else _read(Path(config_file))
    target = Path(asked["target"])
    with source.open("rb") as file, (target / TENSORS).open("xb") as tensors, (target / CONFIG).open("xb") as described:
        size = source.stat().st_size
        _lock_down(size)
        try:
            adapter = convert(SourceKind(asked["kind"]), file, size, config)
            described.write(adapter.config)
            write_safetensors(tensors, adapter.tensors)
        except Malformed as error:
            report: dict[str, object] = {"rejected": str(error)}
        except MemoryError:
            report = {"rejected": "reading it takes more memory than any file of its size needs"}
        else:
            report = {"notes": adapter.notes}
    sys.stdout.write(json.dumps(report) + "\n")


def convert(kind: SourceKind, file: BinaryIO, size: int, config: bytes = b"") -> Adapter:
    """Return the adapter in a file of `size` bytes; `config` is PEFT's own. Raises Malformed with the reason."""
    if kind is SourceKind.KOBOLDAI:
        return convert_koboldai(file, size)
    saved = read_torch_file(file, size)
    match kind:
        case SourceKind.PEFT_BIN:
            return convert_peft_bin(saved, config)
        case SourceKind.TGIS:
            return convert_tgis(saved)
        case SourceKind.CARTRIDGE:
            return convert_cartridge(saved, size)


def _read(path: Path) -> bytes:
    """Read one byte more than allowed at most; the parser refuses that."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _lock_down(size: int) -> None:
    """Take away what reading a file of `size` bytes does not need. Nothing of it can be taken back.

    Descriptors that are open stay so. A limit of memory is not known to every system; the others are.
    """
    np.zeros(1).reshape(1, 1)  # numpy has begun
    io.StringIO()
    seconds = _CPU_SECONDS + size // _CPU_BYTES_PER_SECOND
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES + 2 * size)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, _MEMORY + _MEMORY_PER_BYTE * size)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, 0)


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    main(sys.argv[1])
