"""A zip of an adapter's folder: where its entries point, how large they say they are, and what they are."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import zipfile
import zlib

from tests.hostile.uploads import (
    CONFIG,
    TENSORS,
    ZIP,
    Attacks,
    Entry,
    Upload,
    archive,
    entries_of,
    right,
    send,
    send_zip,
)

ATTACKS = Attacks()
OUTSIDE = "points outside its folder"
PACKED = archive(entries_of(right()))


@ATTACKS.bad("'../adapter_config.json'", OUTSIDE)
def zip_entry_that_climbs() -> Upload:
    return send_zip(Entry("../adapter_config.json"))


@ATTACKS.bad("'adapter/../../../root/.profile'", OUTSIDE)
def zip_entry_that_climbs_from_a_folder() -> Upload:
    return send_zip(Entry("adapter/../../../root/.profile"))


@ATTACKS.bad("'/etc/passwd'", OUTSIDE)
def zip_entry_of_an_absolute_path() -> Upload:
    return send_zip(Entry("/etc/passwd"))


@ATTACKS.bad(r"'..\\..\\adapter_config.json'", OUTSIDE)
def zip_entry_with_backslashes() -> Upload:
    return send_zip(Entry("..\\..\\adapter_config.json"))


@ATTACKS.bad("'C:adapter_config.json'", OUTSIDE)
def zip_entry_on_a_drive() -> Upload:
    return send_zip(Entry("C:adapter_config.json"))


@ATTACKS.bad(r"'adapter_config.json\x00.txt'", OUTSIDE)
def zip_entry_with_a_zero_byte() -> Upload:
    return send_zip(Entry("adapter_config.json\0.txt"))


@ATTACKS.bad("'a/b/adapter_config.json' lies deeper than one folder")
def zip_entry_in_a_deep_folder() -> Upload:
    return send_zip(Entry("a/b/adapter_config.json"))


@ATTACKS.bad("do not all lie at its top or in one folder")
def zip_of_two_folders() -> Upload:
    return send_zip(Entry("a/adapter_config.json"), Entry("b/adapter_model.safetensors"))


@ATTACKS.bad("'adapter_config.json' is a link or a device")
def zip_entry_that_is_a_symlink() -> Upload:
    return send_zip(Entry(CONFIG, b"/etc/passwd", mode=stat.S_IFLNK | 0o777))


@ATTACKS.bad("'LICENSE' is a link or a device")
def zip_entry_that_is_a_device() -> Upload:
    return send_zip(Entry("LICENSE", b"", mode=stat.S_IFCHR | 0o666))


@ATTACKS.bad("'README.md' is a link or a device")
def zip_entry_that_is_a_pipe() -> Upload:
    return send_zip(Entry("README.md", b"", mode=stat.S_IFIFO | 0o666))


@ATTACKS.bad("the zip holds a file twice")
def zip_with_a_file_twice() -> Upload:
    return send_zip(*entries_of(right()), Entry(CONFIG, b'{"peft_type": "LORA"}'))


@ATTACKS.bad("the zip holds a file twice")
def zip_with_a_file_twice_on_a_case_blind_disk() -> Upload:
    return send_zip(Entry("LICENSE.a"), Entry("LICENSE.A"))


@ATTACKS.bad("'adapter_config.json' is encrypted")
def zip_entry_that_is_encrypted() -> Upload:
    return send_zip(Entry(CONFIG, bytes(32), flags=1))


@ATTACKS.bad("'adapter_config.json' is encrypted")
def zip_entry_that_is_strongly_encrypted() -> Upload:
    return send_zip(Entry(CONFIG, bytes(32), method=99, flags=0x41, extra=b"\1\x99\7\0\2\0AE\3\0\0"))


@ATTACKS.bad("more bytes than the largest adapter for this base model has")
def zip_bomb() -> Upload:
    return send_zip(*(Entry(f"LICENSE.{i}", bytes(1_000_000), 8) for i in range(16)))


@ATTACKS.bad("adapter_model.safetensors unpacks to over 100 times its size")
def zip_entry_that_swells() -> Upload:
    return send_zip(Entry(TENSORS, bytes(2**24), 8))


@ATTACKS.bad("reaches into what follows it")
def zip_entry_that_swells_and_lies_about_its_packed_size() -> Upload:
    return send_zip(Entry(CONFIG, b"{" + b" " * 4_000_000 + b"}", 8, packed_size=2**30))


@ATTACKS.bad("the zip is damaged", "CRC")
def zip_entry_that_lies_about_its_size() -> Upload:
    return send_zip(Entry(TENSORS, bytes(2**22), 8, size=10))


@ATTACKS.bad("the zip is damaged")
def zip_entry_that_ends_before_its_size() -> Upload:
    return send_zip(Entry(CONFIG, b"{}", size=10_000, packed_size=2), Entry("LICENSE"))


@ATTACKS.bad("reaches into what follows it")
def zip_entry_longer_than_the_file() -> Upload:
    return send_zip(Entry(CONFIG, b"{}", size=10_000, packed_size=10_000))


@ATTACKS.bad("'LICENSE.8' reaches into what follows it")
def zip_entries_that_overlap() -> Upload:
    """The kernel of a bomb is quoted by each entry before it (Fifield, A better zip bomb, WOOT 2019)."""
    quoted, sizes, kernel = b"", [], Entry("LICENSE.9", bytes(100_000), 8)
    quoted = kernel.local()
    entries = [kernel]
    data = kernel.data
    for number in range(8, -1, -1):
        literal = b"\0" + struct.pack("<HH", len(quoted) - len(entries[0].pack()), 0)
        literal = literal[:3] + struct.pack("<H", 0xFFFF ^ struct.unpack("<H", literal[1:3])[0])
        head = quoted[: len(quoted) - len(entries[0].pack())]
        data = head + data
        entry = Entry(f"LICENSE.{number}", data, 8, packed=literal + head + entries[0].pack())
        quoted = entry.local()
        entries.insert(0, entry)
        sizes.append(len(quoted))
    whole = quoted
    starts = [whole.index(f"LICENSE.{number}".encode()) - 30 for number in range(10)]
    return send({ZIP: archive([_at(entry, start) for entry, start in zip(entries, starts, strict=True)], before=whole)})


def _at(entry: Entry, start: int) -> Entry:
    entry.offset = start
    return entry


@ATTACKS.bad("reaches into what follows it")
def zip_entries_of_the_same_bytes() -> Upload:
    first = Entry("LICENSE", b"x" * 1000)
    return send({ZIP: archive([_at(Entry("LICENSE", b"x" * 1000), 0), _at(Entry("README.md", b"x" * 1000), 0)],
                              before=first.local())})  # fmt: skip


@ATTACKS.bad("'inner.zip' is no file of an adapter")
def zip_in_a_zip() -> Upload:
    return send_zip(Entry("inner.zip", PACKED))


@ATTACKS.bad("adapter_model.safetensors", "it is a zip or a PyTorch checkpoint")
def zip_in_a_zip_by_the_name_of_the_tensors() -> Upload:
    return send_zip(Entry(CONFIG, right()[CONFIG]), Entry(TENSORS, PACKED))


@ATTACKS.bad("the zip has 17 entries, more than 16|the zip has 18 entries, more than 16")
def zip_of_too_many_entries() -> Upload:
    return send_zip(*(Entry(f"LICENSE.{number}") for number in range(18)))


@ATTACKS.bad("the zip has 60000 entries, more than 16")
def zip_of_sixty_thousand_entries() -> Upload:
    return send_zip(*(Entry(f"LICENSE.{number}", b"") for number in range(16)), count=60_000)


@ATTACKS.bad("says that it has 1 entries, and has 16")
def zip_with_more_entries_than_it_says() -> Upload:
    return send_zip(*(Entry(f"LICENSE.{number}", b"") for number in range(16)), count=1)


@ATTACKS.bad("'adapter_config.json' is neither stored nor deflated")
def zip_entry_of_lzma() -> Upload:
    return send({ZIP: _packed(zipfile.ZIP_LZMA)})


@ATTACKS.bad("'adapter_config.json' is neither stored nor deflated")
def zip_entry_of_bzip2() -> Upload:
    return send({ZIP: _packed(zipfile.ZIP_BZIP2)})


@ATTACKS.bad("'adapter_config.json' is neither stored nor deflated")
def zip_entry_of_an_unknown_method() -> Upload:
    return send_zip(Entry(CONFIG, method=93))


def _packed(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        made.writestr(CONFIG, right()[CONFIG])
    return out.getvalue()


@ATTACKS.bad("the zip is damaged")
def zip_entry_with_patched_data() -> Upload:
    """Compressed patched data: flag bit 5."""
    return send_zip(Entry(CONFIG, flags=0x20))


@ATTACKS.bad("64-bit or the split form")
def zip_of_the_64_bit_form() -> Upload:
    return send({ZIP: PACKED[:-22] + b"PK\6\7" + bytes(16) + PACKED[-22:]})


@ATTACKS.bad("64-bit or the split form")
def zip_in_several_parts() -> Upload:
    return send({ZIP: PACKED[:-18] + b"\1\0" + PACKED[-16:]})


@ATTACKS.bad("something before its beginning")
def zip_with_a_comment_that_is_another_zip() -> Upload:
    return send({ZIP: archive(entries_of(right()), comment=PACKED)})


@ATTACKS.bad("not a zip, or has something after its end")
def zip_with_bytes_after_its_end() -> Upload:
    return send({ZIP: PACKED + b"#!/bin/sh"})


@ATTACKS.bad("something before its beginning")
def zip_that_is_a_program_too() -> Upload:
    return send({ZIP: b"#!/bin/sh\nexit\n" + PACKED})


@ATTACKS.bad("the file is not a zip")
def gzip_called_a_zip() -> Upload:
    return send({ZIP: gzip.compress(right()[CONFIG])})


@ATTACKS.bad("the file is not a zip")
def empty_file_called_a_zip() -> Upload:
    return send({ZIP: b""})


@ATTACKS.bad("the zip holds no file")
def zip_of_nothing() -> Upload:
    return send_zip()


@ATTACKS.bad("the zip holds no file")
def zip_of_a_folder_only() -> Upload:
    return send_zip(Entry("adapter/", b"", mode=stat.S_IFDIR | 0o755))


@ATTACKS.bad("'adapter_model.bin' may hold a pickle")
def zip_with_a_pickle() -> Upload:
    return send_zip(*entries_of(right()), Entry("adapter_model.bin", b"\x80\x04."))


@ATTACKS.bad("'manifest.json' is no file of an adapter")
def zip_with_the_stores_manifest() -> Upload:
    return send_zip(*entries_of(right()), Entry("manifest.json"))


@ATTACKS.bad("the zip is damaged", "differ|header")
def zip_entry_of_another_name_where_its_bytes_are() -> Upload:
    return send_zip(Entry(CONFIG, local_name="../" + CONFIG))


@ATTACKS.bad("the zip is damaged")
def zip_entry_of_a_vast_name_where_its_bytes_are() -> Upload:
    return send_zip(Entry(CONFIG, local_name=b"\x1b[31m" + b"x" * 60_000))


@ATTACKS.bad("is no file of an adapter")
def zip_entry_of_a_vast_name() -> Upload:
    return send_zip(Entry("x" * 60_000))


@ATTACKS.bad("is no file of an adapter")
def zip_entry_whose_name_is_no_text() -> Upload:
    return send_zip(Entry(b"\xff\xfe\xff", flags=0x0))


@ATTACKS.bad("the zip is damaged")
def zip_entry_whose_utf8_name_is_no_utf8() -> Upload:
    return send_zip(Entry(b"\xff\xfe\xff", flags=0x800))


@ATTACKS.bad("the zip is damaged", "CRC")
def zip_entry_of_a_wrong_checksum() -> Upload:
    return send_zip(Entry(CONFIG, crc=zlib.crc32(b"other")))


@ATTACKS.bad("the zip is damaged")
def zip_entry_of_a_broken_stream() -> Upload:
    return send_zip(Entry(CONFIG, right()[CONFIG], 8, packed=b"\xff" * 64))


@ATTACKS.bad("the zip is damaged")
def zip_entry_of_a_stream_that_stops() -> Upload:
    return send_zip(Entry(CONFIG, right()[CONFIG], 8, packed=b"\0\x40\0\xbf\xff{"))


@ATTACKS.bad("the zip is damaged")
def zip_entry_with_a_cut_extra_field() -> Upload:
    return send_zip(Entry(CONFIG, extra=b"\1\0\xff\xff\0"))
