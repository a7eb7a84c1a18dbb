"""JSON and safetensors headers that a stranger wrote: read exactly, or refused with the reason."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.formats.headers import read_header
from server.formats.strict_json import MAX_BYTES, Malformed, parse_object
from tests.formats.folders import safetensors, with_header


def test_an_object_comes_back_as_it_is() -> None:
    value = {"a": [1, -2.5, None, True, "ä€😀"], "b": {"c": {}}}
    assert parse_object(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"x": {"a": 1, "b": 1, "a": 1}}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "the number '1e999' is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b'{"a": ' + b"[" * 7 + b"]" * 7 + b"}", ""),
        (b'{"a": ' + b"[" * 8 + b"]" * 8 + b"}", "deeper than 8 levels"),
        (b'{"a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "deeper than 8 levels"),
        (b'{"a": "' + b"x" * MAX_BYTES + b'"}', "more than the 65,536 allowed"),
    ],
)
def test_json_beyond_the_bounds_is_refused(data: bytes, reason: str) -> None:
    if not reason:
        assert parse_object(data)
        return
    with pytest.raises(Malformed, match=reason) as caught:
        parse_object(data)
    assert len(str(caught.value)) < 300


def test_a_header_gives_names_shapes_and_places(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(safetensors({"a": (2, 3), "b": (4,)}, "BF16"))
    tensors = read_header(path)
    assert list(tensors) == ["a", "b"]
    assert tensors["a"].shape == (2, 3)
    assert tensors["b"].dtype == "BF16"
    assert tensors["b"].offset == tensors["a"].offset + 12
    assert tensors["b"].num_bytes == 8


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ({"a": entry(dtype="I64", offsets=(0, 8))}, 8, r"dtype 'I64'; allowed are BF16, F16, F32"),
        ({"a": entry(dtype="F8_E5M2", offsets=(0, 1))}, 1, "allowed are"),
        ({"a": entry(dtype=["F32"])}, 4, "allowed are"),
        ({"a": entry(shape=(0,), offsets=(0, 0))}, 0, "dimensions are positive"),
        ({"a": entry(shape=(-1,))}, 4, "dimensions are positive"),
        ({"a": entry(shape=(True,))}, 4, "dimensions are positive"),
        ({"a": entry(shape=(1.0,))}, 4, "dimensions are positive"),
        ({"a": entry(shape=(1,) * 9)}, 4, "dimensions are positive"),
        ({"a": entry(shape="1")}, 4, "dimensions are positive"),
        ({"a": entry(shape=(2**62, 2**62))}, 4, "but its data_offsets span 4"),
        ({"a": entry(offsets=(0, 8))}, 8, "needs 4 bytes, but its data_offsets span 8"),
        ({"a": entry(offsets=(4, 0))}, 4, "has data_offsets"),
        ({"a": entry(offsets=(-4, 0))}, 4, "has data_offsets"),
        ({"a": entry(offsets=(0, 4, 8))}, 4, "has data_offsets"),
        ({"a": entry(offsets=(0.0, 4.0))}, 4, "has data_offsets"),
        ({"a": entry(sparse=True)}, 4, "not described by dtype, shape and data_offsets"),
        ({"a": [1]}, 4, "not described by"),
        ({"a": entry(), "b": entry(offsets=(8, 12))}, 12, "tensor 'b' leaves a gap"),
        ({"a": entry(), "b": entry()}, 4, "tensor 'b' overlaps"),
        ({"a": entry()}, 5, "end at byte"),
        ({"a": entry()}, 3, "end at byte"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
        ({"__metadata__": 1}, 0, "__metadata__"),
    ],
)
def test_a_header_that_is_not_exact_is_refused(
    header: dict[str, object], size: int, reason: str, tmp_path: Path
) -> None:
    assert fault(tmp_path, with_header(json.dumps(header).encode(), bytes(size)), reason)


def test_a_tensor_that_stands_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry())
    assert fault(tmp_path, with_header(f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4)), "the key 'a' stands twice")


def test_a_header_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 60_000_000))
        file.truncate(100_000_000)
    with pytest.raises(Malformed, match="its header has 60,000,000 bytes, more than the 65,536 allowed"):
        read_header(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short"),
        (b"\x80\x02}q\x00.padding", "a Python pickle"),
        (b"PK\x03\x04" + bytes(20), "a zip or a PyTorch checkpoint"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
        (struct.pack("<Q", 100) + b"{}", "claims 100 bytes, but the file has 10"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "claims 18,446,744,073,709,551,615 bytes"),
    ],
)
def test_other_files_under_its_name_are_told_apart(data: bytes, reason: str, tmp_path: Path) -> None:
    assert fault(tmp_path, data, reason)


def test_a_header_of_128_bytes_is_no_pickle(tmp_path: Path) -> None:
    header = json.dumps({"a": entry()}).encode().ljust(128)
    (tmp_path / "file").write_bytes(with_header(header, bytes(4)))
    assert (tmp_path / "file").read_bytes().startswith(b"\x80")
    assert list(read_header(tmp_path / "file")) == ["a"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 200), byte=st.integers(0, 255))
def test_one_changed_byte_never_gets_past_with_other_sizes(place: int, byte: int, tmp_path: Path) -> None:
    good = bytearray(safetensors({"prompt_embeddings": (5, 12), "other": (3,)}))
    good[place % (len(good) - 252)] = byte
    path = tmp_path / "file"
    path.write_bytes(good)
    try:
        tensors = read_header(path)
    except Malformed:
        return
    assert sum(tensor.num_bytes for tensor in tensors.values()) == 252


def fault(folder: Path, data: bytes, reason: str) -> bool:
    path = folder / "file"
    path.write_bytes(data)
    with pytest.raises(Malformed, match=reason):
        read_header(path)
    return True
