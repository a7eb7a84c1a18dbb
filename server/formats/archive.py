"""Unpack one zip of an adapter's folder: flat, or with one folder around everything."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from server.errors import AdapterRejected
from server.formats.judge import MAX_FILES, require_known_file
from server.formats.strict_json import shown

MAX_RATIO = 100
"""Unpacked over packed bytes. Trained weights hardly shrink, and no text shrinks by this much."""

_FREE_BYTES = 1024 * 1024  # below this, a high ratio harms nobody
_CHUNK = 1024 * 1024
_MAX_DIRECTORY_BYTES = 64 * 1024
_END = struct.Struct("<4sHHHHIIH")  # end of central directory record
_LOCATOR = b"PK\x06\x07"  # of the zip64 end record, 20 bytes before the other
_LOCAL_BYTES = 30  # an entry's own header, without its name
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack_zip(source: Path, folder: Path, max_bytes: int) -> None:
    """Write the files of the zip `source` into the existing, empty `folder`.

    At most `max_bytes` bytes are written, counted as they are read and not as the archive claims. Raises
    AdapterRejected with the reason; what was written until then stays, for the caller to remove with the folder.
    """
    with source.open("rb") as file:
        total = _judge_directory(file, source.stat().st_size)
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if len(members) != total:
                    raise AdapterRejected(f"the zip says that it has {total} entries, and has {len(members)}")
                names = _names(members)
                _require_apart(members, archive.start_dir)
                for member, name in names:
                    max_bytes -= _unpack(archive, member, folder / name, max_bytes)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, IndexError, UnicodeError, zlib.error) as error:
            # The words of `zipfile` repeat names from the file, of any length.
            reason = shown(str(error) or "it ends too early")
            raise AdapterRejected(f"the zip is damaged: {reason}") from error


def _judge_directory(file: BinaryIO, size: int) -> int:
    """Bound the central directory before `zipfile` reads it into memory; return how many entries it says it has.

    `zipfile` takes an end record in the last 22 bytes without looking further, so both look at the same one.
    """
    file.seek(max(0, size - _END.size - 20))
    tail = file.read()
    if len(tail) < _END.size:
        raise AdapterRejected("the file is not a zip")
    end = _END.unpack(tail[-_END.size :])
    signature, disk, first_disk, here, total, directory_bytes, directory_at, comment = end
    if signature != b"PK\x05\x06" or comment:
        raise AdapterRejected("the file is not a zip, or has something after its end")
    if tail.startswith(_LOCATOR) or disk or first_disk or here != total:
        raise AdapterRejected("the zip is of the 64-bit or the split form; send a plain one")
    if total > MAX_FILES + 1 or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise AdapterRejected(f"the zip has {total} entries, more than {MAX_FILES}")
    if directory_at + directory_bytes + _END.size != size:
        raise AdapterRejected("the zip has something before its beginning, or between its parts")
    file.seek(0)
    return int(total)


def _names(members: list[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, str]]:
    """Return the files with the names they get. Only a known plain name can come out of this."""
    found: list[tuple[zipfile.ZipInfo, str]] = []
    tops: set[str] = set()
    for member in members:
        path = member.orig_filename
        _judge_member(member, path)
        parts = path.rstrip("/").split("/")
        if member.is_dir():
            parts.append("")
        if len(parts) > 2:
            raise AdapterRejected(f"the zip's entry {shown(path)} lies deeper than one folder")
        tops.add("/".join(parts[:-1]))
        if parts[-1]:
            require_known_file(parts[-1])
            found.append((member, parts[-1]))
    if len(tops) > 1:
        raise AdapterRejected("the zip's files do not all lie at its top or in one folder")
    if len({name.lower() for _, name in found}) != len(found):
        raise AdapterRejected("the zip holds a file twice")
    if not found:
        raise AdapterRejected("the zip holds no file")
    return found


def _require_apart(members: list[zipfile.ZipInfo], end: int) -> None:
    """Hold every entry to bytes of its own: what many entries share unpacks many times.

    Source: Fifield, A better zip bomb, WOOT 2019.
    """
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        if member.header_offset + _LOCAL_BYTES + member.compress_size > end:
            raise AdapterRejected(f"the zip's entry {shown(member.orig_filename)} reaches into what follows it")
        end = member.header_offset


def _judge_member(member: zipfile.ZipInfo, path: str) -> None:
    mode = member.external_attr >> 16
    kind = mode & 0o170000
    if path.startswith("/") or "\\" in path or "\0" in path or ":" in path or ".." in path.split("/"):
        raise AdapterRejected(f"the zip's entry {shown(path)} points outside its folder")
    if kind not in (0, 0o040000 if member.is_dir() else 0o100000):
        raise AdapterRejected(f"the zip's entry {shown(path)} is a link or a device, not a file")
    if member.flag_bits & 0x1:
        raise AdapterRejected(f"the zip's entry {shown(path)} is encrypted")
    if member.compress_type not in _METHODS:
        raise AdapterRejected(f"the zip's entry {shown(path)} is neither stored nor deflated")


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, max_bytes: int) -> int:
    """Write one member and return its bytes."""
    written = 0
    with archive.open(member) as packed, target.open("xb") as out:
        while chunk := packed.read(_CHUNK):
            written += len(chunk)
            if written > max_bytes:
                raise AdapterRejected("the zip unpacks to more bytes than the largest adapter for this base model has")
            if written > _FREE_BYTES and written > MAX_RATIO * max(member.compress_size, 1):
                raise AdapterRejected(f"the zip's {target.name} unpacks to over {MAX_RATIO} times its size")
            out.write(chunk)
    if written != member.file_size:
        raise AdapterRejected(f"the zip is damaged: {target.name} has {written} bytes, not {member.file_size}")
    return written
