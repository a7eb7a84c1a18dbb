"""The process that reads a stranger's file: `python -m server.convert.child REQUEST`, started by `isolation`.

It opens and maps its files, then gives up the right to open anything: no file, no socket and no process can be made
from there on. Only then is the first byte of the file read. What comes of it is one line of JSON.
"""

from __future__ import annotations

import contextlib
import encodings.cp437
import encodings.idna
import json
import lzma
import mmap
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

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

NEEDED_LATER = (encodings.cp437, encodings.idna, lzma, traceback)
"""What zipfile and a traceback import only when they need it, when nothing can be opened any more."""

_NOBODY = 65534
_MEMORY = 2**30  # bytes of address space: the interpreter, and the largest array of a zip unpacked
_MEMORY_PER_BYTE = 2  # the file mapped, and as much to spare
_FILE_BYTES = 2**30
_CPU_SECONDS = 30
_CPU_BYTES_PER_SECOND = 16 * 2**20


def main(request: str) -> None:
    """Convert as `request` says: {"kind", "file", "config" or null, "target"}, and print what came of it.

    That is {"notes": […]}, or {"rejected": "…"} with the reason. Anything unforeseen ends the process instead.
    """
    asked = json.loads(request)
    config = b"" if asked["config"] is None else _read(Path(asked["config"]))
    target = Path(asked["target"])
    with (
        Path(asked["file"]).open("rb") as file,
        (target / TENSORS).open("xb") as tensors,
        (target / CONFIG).open("xb") as described,
    ):
        data = _mapped(file)
        lock_down(len(data))
        try:
            adapter = convert(SourceKind(asked["kind"]), file, data, config)
            described.write(adapter.config)
            write_safetensors(tensors, adapter.tensors)
        except Malformed as error:
            report: dict[str, object] = {"rejected": str(error)}
        except MemoryError:
            report = {"rejected": "reading it takes more memory than any file of its size needs"}
        else:
            report = {"notes": adapter.notes}
    sys.stdout.write(json.dumps(report) + "\n")


def convert(kind: SourceKind, file: BinaryIO, data: memoryview, config: bytes = b"") -> Adapter:
    """Return the adapter in a file with the bytes `data`; `config` is PEFT's own. Raises Malformed with the reason."""
    if kind is SourceKind.KOBOLDAI:
        return convert_koboldai(file, len(data))
    saved = read_torch_file(file, data)
    match kind:
        case SourceKind.PEFT_BIN:
            return convert_peft_bin(saved, config)
        case SourceKind.TGIS:
            return convert_tgis(saved)
        case SourceKind.CARTRIDGE:
            return convert_cartridge(saved, len(data))


def _read(path: Path) -> bytes:
    """Read one byte more than allowed at most; the parser refuses that."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _mapped(file: BinaryIO) -> memoryview:
    """Map a file without reading it. A map of nothing cannot be made."""
    size = os.fstat(file.fileno()).st_size
    return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")


def lock_down(size: int) -> None:
    """Take away what reading a file of `size` bytes does not need; nothing of it can be taken back.

    What is open stays open. Root could raise its limits again, so root becomes nobody first, where a container knows
    nobody. A limit of memory is not known to every system; the others are.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    _limit(resource.RLIMIT_CPU, _CPU_SECONDS + size // _CPU_BYTES_PER_SECOND)
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES + size)
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
