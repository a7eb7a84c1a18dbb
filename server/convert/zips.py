"""The members of a stranger's zip: found, judged, and read by name into memory. Nothing is ever unpacked to disk.

torch.save writes zips of the 64-bit form with stored members; KoboldAI plain ones, packed with LZMA. The form is that
of PKWARE's APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from server.formats.strict_json import Malformed, shown

MAX_MEMBERS = 8192
"""A cartridge has four tensors a layer, a storage each."""

_MAX_DIRECTORY_BYTES = 1024 * 1024
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
_CHUNK = 4096
"""Bytes unpacked at a time. `zipfile` unpacks them whole: 30 MB at most as LZMA, gigabytes as bzip2."""

_END = struct.Struct("<4sHHHHIIH")  # end of central directory record
_LOCATOR = struct.Struct("<4sIQI")  # of the 64-bit end record, right before the other
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCAL = struct.Struct("<4s5H3I2H")  # before every member
_ZIP64 = 0xFFFFFFFF
_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, EOFError, IndexError, ValueError, OSError, struct.error, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
"""What zipfile and its decompressors raise over damaged files."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a zip. `offset` is where its packed bytes begin."""

    info: zipfile.ZipInfo
    offset: int

    @property
    def name(self) -> str:
        """The path in the zip."""
        return self.info.orig_filename

    @property
    def stored(self) -> bool:
        """Whether its bytes lie in the zip as they are."""
        return self.info.compress_type == zipfile.ZIP_STORED


def read_members(file: BinaryIO, size: int) -> dict[str, Member]:
    """Return the zip's files by name. `size` is the file's in bytes.

    Raises Malformed for what is no zip, has something before or after it, too many members, two of one name, a path
    that leaves its folder, an encrypted member, members that overlap, or local headers that contradict the central
    directory.
    """
    _judge_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
        members = [_member(file, info, size) for info in infos]
    except _DAMAGE as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"the zip is damaged: {error}") from error
    if sum(info.compress_size for info in infos) > size:
        raise Malformed("the zip's members overlap")
    found = {member.name: member for member in members}
    if len(found) != len(members):
        raise Malformed("the zip holds a file twice")
    return found


def read_member(file: BinaryIO, member: Member, max_bytes: int) -> bytearray:
    """Return a member's bytes, unpacked, once their checksum is right.

    Raises Malformed where it claims more than `max_bytes`; `zipfile` never gives more than is claimed.
    """
    if member.info.file_size > max_bytes:
        raise Malformed(
            f"{shown(member.name)} has {member.info.file_size:,} bytes, more than the {max_bytes:,} allowed"
        )
    if member.info.compress_type not in _PACKED:
        raise Malformed(f"{shown(member.name)} is packed in another way than stored, deflated or LZMA")
    data = bytearray()
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member.info) as packed:
            while chunk := packed.read(_CHUNK):
                data += chunk
    except _DAMAGE as error:
        raise Malformed(f"{shown(member.name)} in the zip is damaged: {error}") from error
    return data


def _judge_directory(file: BinaryIO, size: int) -> None:
    """Bound the central directory before `zipfile` reads it into memory.

    `zipfile` takes an end record in the last 22 bytes without looking further, so both look at the same one.
    """
    file.seek(0)
    starts_like_one = file.read(4) == b"PK\x03\x04"
    file.seek(max(0, size - _END.size - _LOCATOR.size))
    tail = file.read()
    if not starts_like_one or len(tail) < _END.size + _LOCATOR.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise Malformed("it is no zip, is cut off, or has something before or after the zip")
    _, disk, first_disk, here, count, directory_bytes, _, comment = _END.unpack(tail[-_END.size :])
    signature, _, place, _ = _LOCATOR.unpack(tail[: _LOCATOR.size])
    if signature == b"PK\x06\x07":
        file.seek(min(place, size))
        end64 = file.read(_END64.size)
        if len(end64) < _END64.size or not end64.startswith(b"PK\x06\x06"):
            raise Malformed("the zip's 64-bit end record is not where it says")
        _, _, _, _, disk, first_disk, here, count, directory_bytes, _ = _END64.unpack(end64)
    if disk or first_disk or here != count or comment:
        raise Malformed("the zip is split, or has a comment")
    if count > MAX_MEMBERS or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise Malformed(f"the zip has {count:,} members, more than any file of tensors")


def _member(file: BinaryIO, info: zipfile.ZipInfo, size: int) -> Member:
    """Judge one member and find its bytes. Readers that trust the local header must see what we see."""
    name = info.orig_filename
    if name.startswith("/") or "\\" in name or "\0" in name or ":" in name or ".." in name.split("/"):
        raise Malformed(f"the zip's member {shown(name)} points outside of it")
    if info.flag_bits & 0x1:
        raise Malformed(f"the zip's member {shown(name)} is encrypted")
    file.seek(info.header_offset)
    signature, _, _, method, _, _, crc, packed, unpacked, name_bytes, extra_bytes = _LOCAL.unpack(
        file.read(_LOCAL.size)
    )
    said = file.read(name_bytes)
    if signature != b"PK\x03\x04" or said != name.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
        raise Malformed(f"the zip's member {shown(name)} has another name where it begins")
    # Writers that stream leave these out (flag 8) and say them behind the data.
    later = bool(info.flag_bits & 0x8)
    agrees = (crc, packed, unpacked) == (info.CRC, info.compress_size, info.file_size)
    if method != info.compress_type or not (later or agrees or _ZIP64 in (packed, unpacked)):
        raise Malformed(f"the zip's member {shown(name)} is described in two ways that differ")
    offset = info.header_offset + _LOCAL.size + name_bytes + extra_bytes
    if offset + info.compress_size > size or (info.compress_type == 0 and info.compress_size != info.file_size):
        raise Malformed(f"the zip's member {shown(name)} has fewer bytes than it claims")
    return Member(info, offset)
