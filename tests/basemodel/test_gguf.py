"""Reading GGUF files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from server.basemodel import BaseModelError
from server.basemodel.gguf import GGUFFile
from tests.basemodel.gguf_files import F32, Q4_1, Q8_0, floats, write_gguf


def test_metadata_of_every_type_comes_back(tmp_path: Path) -> None:
    metadata = {"a": 7, "b": 0.5, "c": "h€llo", "d": True, "e": [1, 2, 3], "f": ["x", "yz"]}
    assert GGUFFile(write_gguf(tmp_path / "m.gguf", metadata, {})).metadata == metadata


def test_float_tensors_keep_shape_and_values(tmp_path: Path) -> None:
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((5,), -1.5, dtype=np.float32)
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", {}, {"first": floats(first), "second": floats(second)}))
    assert file.names == ("first", "second")
    assert file.shape("first") == (2, 3)
    np.testing.assert_array_equal(file.tensor("first"), first)
    np.testing.assert_array_equal(file.tensor("second"), second)


def test_q4_1_is_scale_times_half_byte_plus_minimum(tmp_path: Path) -> None:
    # Weight i of a block is the low half of byte i, weight 16 + i its high half.
    block = struct.pack("<ee", 0.5, -2.0) + bytes(i | (15 - i) << 4 for i in range(16))
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", {}, {"w": (Q4_1, (2, 32), block * 2)}))
    low = [0.5 * i - 2 for i in range(16)]
    np.testing.assert_array_equal(file.tensor("w"), [low + low[::-1]] * 2)


def test_q8_0_is_scale_times_signed_byte(tmp_path: Path) -> None:
    block = struct.pack("<e32b", 0.25, *range(-16, 16))
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", {}, {"w": (Q8_0, (32,), block)}))
    np.testing.assert_array_equal(file.tensor("w"), [0.25 * i for i in range(-16, 16)])


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 4), "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60), "cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "unknown type 99"),
    ],
)
def test_what_is_no_gguf_file_is_refused_with_the_reason(tmp_path: Path, contents: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(contents)
    with pytest.raises(BaseModelError, match=reason):
        GGUFFile(path)


def test_a_tensor_type_that_is_not_decoded_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"odd": (14, (256,), bytes(210))})
    with pytest.raises(BaseModelError, match="odd has ggml type 14"):
        GGUFFile(path)


def test_a_file_that_ends_within_a_tensor_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": (F32, (64,), bytes(128))})
    with pytest.raises(BaseModelError, match="cut short"):
        GGUFFile(path).tensor("w")
