"""One zip of an adapter's folder: unpacked to the same bytes, or refused for its own reason."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from server.errors import AdapterRejected
from server.formats.archive import unpack_zip
from server.formats.judge import judge_folder
from tests.formats.folders import BASE, CONFIG, TENSORS, make_folder

LIMIT = 8_000_000
Fill = Callable[[zipfile.ZipFile], None]


@pytest.mark.parametrize("top", ["", "adapter/", "./"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_the_folder_is_the_folder(top: str, method: int, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", sidecar={})

    def fill(archive: zipfile.ZipFile) -> None:
        if top == "adapter/":
            archive.mkdir("adapter")
        for path in source.iterdir():
            archive.write(path, top + path.name, compress_type=method)

    target = unpack(tmp_path, zipped(fill))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
    assert judge_folder(target, BASE) == judge_folder(source, BASE)


def entry(name: str, data: bytes = b"{}") -> Fill:
    return lambda archive: archive.writestr(raw(name), data)


def raw(name: str) -> zipfile.ZipInfo:
    """An entry whose name is written as it is, without zipfile's own cleaning."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    return info


def mode(kind: int) -> Fill:
    def fill(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(CONFIG)
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")

    return fill


def several(*names: str) -> Fill:
    def fill(archive: zipfile.ZipFile) -> None:
        for name in names:
            archive.writestr(raw(name), b"{}")

    return fill


def packed(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> Fill:
    return lambda archive: archive.writestr(name, data, compress_type=method)


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (entry("../adapter_config.json"), "'../adapter_config.json' points outside"),
        (entry("a/../../adapter_config.json"), "points outside"),
        (entry("/adapter_config.json"), "points outside"),
        (entry("..\\adapter_config.json"), "points outside"),
        (entry("C:adapter_config.json"), "points outside"),
        (entry("adapter_config.json\0.bin"), "points outside|no file of an adapter"),
        (entry("a/b/adapter_config.json"), "lies deeper than one folder"),
        (entry("a//adapter_config.json"), "lies deeper than one folder"),
        (several("a/adapter_config.json", "b/README.md"), "do not all lie at its top or in one folder"),
        (several("adapter_config.json", "b/README.md"), "do not all lie at its top or in one folder"),
        (entry("adapter_model.bin", b"\x80\x04"), "may hold a pickle"),
        (entry("manifest.json"), "'manifest.json' is no file of an adapter"),
        (entry("sub.zip"), "is no file of an adapter"),
        (several("LICENSE.a", "LICENSE.A"), "holds a file twice"),
        (mode(stat.S_IFLNK), "is a link or a device"),
        (mode(stat.S_IFIFO), "is a link or a device"),
        (mode(stat.S_IFDIR), "is a link or a device"),
        (packed(CONFIG, b"{}", zipfile.ZIP_BZIP2), "neither stored nor deflated"),
        (packed(CONFIG, b"{}", zipfile.ZIP_LZMA), "neither stored nor deflated"),
        (packed(TENSORS, bytes(4_000_000)), "unpacks to over 100 times its size"),
        (packed(TENSORS, bytes(LIMIT + 1), zipfile.ZIP_STORED), "more bytes than the largest adapter"),
        (several(*(f"LICENSE.{i}" for i in range(18))), "has 18 entries, more than 16"),
        (several(), "holds no file"),
        (lambda archive: archive.mkdir("adapter"), "holds no file"),
    ],
)
def test_each_fault_is_refused_for_its_own_reason(fill: Fill, reason: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match=reason):
        unpack(tmp_path, zipped(fill))
    assert {path.name for path in tmp_path.iterdir()} == {"upload", "target"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match="holds a file twice"):
        unpack(tmp_path, zipped(several(CONFIG, CONFIG)))


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(entry(CONFIG)))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(AdapterRejected, match="is encrypted"):
        unpack(tmp_path, bytes(data))


def test_bytes_are_counted_as_they_are_read_not_as_claimed(tmp_path: Path) -> None:
    data = bytearray(zipped(packed(TENSORS, bytes(4_000_000))))
    for signature, field in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + field, 10)
    with pytest.raises(AdapterRejected, match="damaged"):
        unpack(tmp_path, bytes(data))
    assert sum(path.stat().st_size for path in (tmp_path / "target").iterdir()) < 2_000_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], "not a zip"),
        (lambda data: data + b"x", "not a zip"),
        (lambda data: data[:10], "not a zip"),
        (lambda data: b"", "not a zip"),
        (lambda data: data[:-22] + b"PK\x06\x07" + bytes(16) + data[-22:], "64-bit or the split form"),
        (lambda data: data[:-18] + b"\x01" + data[-17:], "64-bit or the split form"),
        (lambda data: data[:-14] + b"\xff\xff" * 2 + data[-10:], "64-bit or the split form|65535 entries"),
        (lambda data: data[:-10] + b"\xff\xff\xff\x00" + data[-6:], "entries, more than"),
        (lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x00"), "damaged"),
        (lambda data: data.replace(b"PK\x03\x04", b"PK\x03\x00"), "damaged"),
        (lambda data: data.replace(b"12345678", b"12345679"), "damaged"),
    ],
)
def test_what_is_no_plain_whole_zip_is_refused(change: Callable[[bytes], bytes], reason: str, tmp_path: Path) -> None:
    data = change(zipped(packed(CONFIG, b"12345678", zipfile.ZIP_STORED)))
    with pytest.raises(AdapterRejected, match=reason):
        unpack(tmp_path, data)


def zipped(fill: Fill) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        fill(archive)
    return out.getvalue()


def unpack(folder: Path, data: bytes) -> Path:
    (folder / "upload").write_bytes(data)
    (folder / "target").mkdir()
    unpack_zip(folder / "upload", folder / "target", LIMIT)
    return folder / "target"
