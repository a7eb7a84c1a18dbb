"""`adapter_model.safetensors`: its header, its tensors, and its values."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tests.hostile.uploads import (
    CONFIG,
    ROWS,
    TENSORS,
    Attacks,
    Upload,
    config_of,
    dump,
    right,
    send,
    shapes_of,
    tensor_file,
    with_header,
)
from tests.http import folders

ATTACKS = Attacks()
SHAPE = [ROWS, folders.HIDDEN]
SIZE = ROWS * folders.HIDDEN * 4
KV, MULTITASK = "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"


def raw(data: bytes) -> Upload:
    """A right adapter but for its tensor file."""
    return send({**right(), TENSORS: data})


def header(**changes: Any) -> Upload:
    """A right adapter but for what its header says of its one tensor."""
    entry = {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, SIZE]} | changes
    return raw(with_header(dump({"prompt_embeddings": entry}), bytes(SIZE)))


def holding(kind: str = "PROMPT_TUNING", **shapes: tuple[int, ...]) -> Upload:
    """A right adapter whose file holds these tensors too."""
    return send({**right(kind), TENSORS: tensor_file({**shapes_of(kind), **shapes})})


# Not a tensor file


@ATTACKS.bad("it is too short to be a safetensors file")
def tensors_of_nothing() -> Upload:
    return raw(b"")


@ATTACKS.bad("it is a Python pickle, not a safetensors file")
def tensors_that_are_a_pickle() -> Upload:
    return raw(b"\x80\x04\x95\x20\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.")


@ATTACKS.bad("it is a zip or a PyTorch checkpoint, not a safetensors file")
def tensors_that_are_a_checkpoint() -> Upload:
    return raw(b"PK\3\4\0\0\x08\x08\0\0archive/data.pkl")


@ATTACKS.bad("it is a gzip archive, not a safetensors file")
def tensors_that_are_an_archive() -> Upload:
    return raw(b"\x1f\x8b\x08\0" + bytes(99))


@ATTACKS.bad("its header claims")
def tensors_that_are_a_gguf_model() -> Upload:
    return raw(b"GGUF\3\0\0\0" + bytes(99))


# The header


@ATTACKS.bad("its header claims 65,536 bytes, but the file has 108")
def header_longer_than_the_file() -> Upload:
    return raw(with_header(b"{}", bytes(98), length=65_536))


@ATTACKS.bad("its header claims 18,446,744,073,709,551,615 bytes")
def header_of_all_the_bytes_there_are() -> Upload:
    return raw(with_header(b"{}", length=2**64 - 1))


@ATTACKS.bad("its header has 65,537 bytes, more than the 65,536 allowed")
def header_a_byte_too_long() -> Upload:
    return raw(with_header(b"{" + b" " * 65_535 + b"}"))


@ATTACKS.answer(413, "payload_too_large", "the upload is larger than")
def header_of_a_million_empty_tensors() -> Upload:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return raw(with_header(b"{" + b",".join(b'"%d":%b' % (number, entry) for number in range(400_000)) + b"}"))


@ATTACKS.bad("more than the 65,536 allowed")
def header_of_as_many_empty_tensors_as_an_upload_holds() -> Upload:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return raw(with_header(b"{" + b",".join(b'"%d":%b' % (number, entry) for number in range(70_000)) + b"}"))


@ATTACKS.bad("tensor '0' has shape [0]; dimensions are positive")
def header_of_a_thousand_empty_tensors() -> Upload:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return raw(with_header(b"{" + b",".join(b'"%d":%b' % (number, entry) for number in range(1000)) + b"}"))


@ATTACKS.bad("adapter_model.safetensors: it is not valid JSON")
def header_of_nothing() -> Upload:
    return raw(with_header(b""))


@ATTACKS.bad("adapter_model.safetensors: it is not a JSON object")
def header_that_is_a_list() -> Upload:
    return raw(with_header(b"[]"))


@ATTACKS.bad("adapter_model.safetensors: it is nested deeper than 8 levels")
def header_of_ten_thousand_brackets() -> Upload:
    return raw(with_header(b'{"a":' * 10_000))


@ATTACKS.bad("adapter_model.safetensors: the key 'prompt_embeddings' stands twice")
def header_with_a_tensor_twice() -> Upload:
    once = dump({"prompt_embeddings": {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, SIZE]}})
    return raw(with_header(once[:-1] + b"," + once[1:], bytes(SIZE)))


@ATTACKS.bad("__metadata__ does not map names to text")
def metadata_that_is_nested() -> Upload:
    return raw(with_header(dump({"__metadata__": {"format": {"py/object": "os.system"}}}), bytes(SIZE)))


@ATTACKS.bad("overlaps the tensor before it")
def tensors_that_overlap() -> Upload:
    entries = {
        "prompt_embeddings": {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, SIZE]},
        "b": {"dtype": "F32", "shape": SHAPE, "data_offsets": [SIZE - 4, 2 * SIZE - 4]},
    }
    return raw(with_header(dump(entries), bytes(2 * SIZE - 4)))


@ATTACKS.bad("leaves a gap before it")
def tensors_with_a_hole_between() -> Upload:
    entries = {
        "prompt_embeddings": {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, SIZE]},
        "b": {"dtype": "F32", "shape": SHAPE, "data_offsets": [SIZE + 64, 2 * SIZE + 64]},
    }
    return raw(with_header(dump(entries), bytes(2 * SIZE + 64)))


@ATTACKS.bad("leaves a gap before it")
def tensors_with_a_hole_at_the_start() -> Upload:
    entry = {"dtype": "F32", "shape": SHAPE, "data_offsets": [64, SIZE + 64]}
    return raw(with_header(dump({"prompt_embeddings": entry}), bytes(SIZE + 64)))


@ATTACKS.bad("its tensors end at byte")
def tensors_with_bytes_after_them() -> Upload:
    return raw(right()[TENSORS] + b"#!/bin/sh")


@ATTACKS.bad("its tensors end at byte")
def tensors_beyond_the_end_of_the_file() -> Upload:
    return raw(right()[TENSORS][:-4])


@ATTACKS.bad("has data_offsets [128, 0]")
def offsets_that_run_backwards() -> Upload:
    return header(data_offsets=[SIZE, 0])


@ATTACKS.bad("has data_offsets [-128, 0]")
def offsets_before_the_start() -> Upload:
    return header(data_offsets=[-SIZE, 0])


@ATTACKS.bad("has data_offsets [0, 118059")
def offsets_beyond_64_bits() -> Upload:
    return header(data_offsets=[0, 10 * 2**70])


@ATTACKS.bad("has data_offsets [False, 128]")
def offsets_that_are_truths() -> Upload:
    return header(data_offsets=[False, SIZE])


@ATTACKS.bad("has data_offsets [0, 64, 128]")
def offsets_of_three_numbers() -> Upload:
    return header(data_offsets=[0, SIZE // 2, SIZE])


@ATTACKS.bad("its data_offsets span 124")
def offsets_of_fewer_bytes_than_the_shape() -> Upload:
    return header(data_offsets=[0, SIZE - 4])


@ATTACKS.bad("is not described by dtype, shape and data_offsets")
def tensor_without_offsets() -> Upload:
    return raw(with_header(dump({"prompt_embeddings": {"dtype": "F32", "shape": SHAPE}})))


@ATTACKS.bad("is not described by dtype, shape and data_offsets")
def tensor_with_a_key_too_many() -> Upload:
    return header(strides=[0, 0])


# Its tensors


@ATTACKS.bad("has dtype 'I64'; allowed are BF16, F16, F32")
def tensor_of_integers() -> Upload:
    return raw(tensor_file({"prompt_embeddings": SHAPE}, "I64"))


@ATTACKS.bad("has dtype 'BOOL'; allowed are")
def tensor_of_truths() -> Upload:
    return raw(tensor_file({"prompt_embeddings": SHAPE}, "BOOL"))


@ATTACKS.bad("has dtype 'F8_E4M3'; allowed are")
def tensor_of_eight_bit_floats() -> Upload:
    return raw(tensor_file({"prompt_embeddings": SHAPE}, "F8_E4M3"))


@ATTACKS.bad("has dtype 'F64'; allowed are")
def tensor_of_doubles() -> Upload:
    return raw(tensor_file({"prompt_embeddings": SHAPE}, "F64"))


@ATTACKS.bad("has dtype ['F32']; allowed are")
def tensor_of_a_list_of_dtypes() -> Upload:
    return header(dtype=["F32"])


@ATTACKS.bad("has shape [1, 1, 1,", "…; dimensions are positive")
def tensor_of_five_thousand_dimensions() -> Upload:
    return header(shape=[1] * 5000, data_offsets=[0, 4])


@ATTACKS.bad("has shape [4611686018427387904, 0]; dimensions are positive")
def tensor_of_vast_dimensions_and_no_bytes() -> Upload:
    return raw(with_header(dump({"prompt_embeddings": {
        "dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}})))  # fmt: skip


@ATTACKS.bad("needs 73,786,976,294,838,206,464 bytes, but its data_offsets span 0")
def tensor_whose_bytes_overflow_to_zero() -> Upload:
    return header(shape=[2**32, 2**32], data_offsets=[0, 0])


@ATTACKS.bad("has shape [18446744073709551616, 1]; dimensions are positive")
def tensor_of_a_dimension_beyond_64_bits() -> Upload:
    return header(shape=[2**64, 1])


@ATTACKS.bad("has shape [-4, -8]; dimensions are positive")
def tensor_of_negative_dimensions() -> Upload:
    return header(shape=[-4, -8])


@ATTACKS.bad("has shape [4.0, 8]; dimensions are positive")
def tensor_of_a_fractional_dimension() -> Upload:
    return header(shape=[4.0, 8])


@ATTACKS.bad("has shape [True, 32]; dimensions are positive")
def tensor_of_a_dimension_that_is_a_truth() -> Upload:
    return header(shape=[True, 32])


@ATTACKS.bad("has shape '48'; dimensions are positive")
def tensor_of_a_shape_that_is_text() -> Upload:
    return header(shape="48")


@ATTACKS.bad("prompt_embeddings has shape [], but")
def tensor_of_one_number() -> Upload:
    return raw(tensor_file({"prompt_embeddings": ()}))


@ATTACKS.bad("prompt_embeddings has shape [32], but")
def table_that_is_flat() -> Upload:
    return raw(tensor_file({"prompt_embeddings": (32,)}))


@ATTACKS.bad("prompt_embeddings has shape [8, 4], but", "num_virtual_tokens is 4")
def table_that_is_turned() -> Upload:
    return raw(tensor_file({"prompt_embeddings": (8, 4)}))


@ATTACKS.bad("prompt_embeddings has shape [5, 8], but", "[4, …]")
def table_with_a_row_more_than_its_config() -> Upload:
    return raw(tensor_file({"prompt_embeddings": (5, 8)}))


@ATTACKS.bad("holds a tensor 'base_model.model.lm_head.weight', which a PROMPT_TUNING adapter does not have")
def tensor_that_would_replace_the_bases_head() -> Upload:
    return holding(**{"base_model.model.lm_head.weight": (258, 8)})


@ATTACKS.bad("holds a tensor '../../x'")
def tensor_with_a_path_as_its_name() -> Upload:
    return holding(**{"../../x": (1,)})


@ATTACKS.bad("holds a tensor 'xxxx")
def tensor_of_a_name_of_fifty_thousand_characters() -> Upload:
    return holding(**{"x" * 50_000: (1,)})


@ATTACKS.bad("holds a tensor 'prefix_task_cols', which a PROMPT_TUNING adapter does not have")
def task_tensors_in_a_soft_prompt() -> Upload:
    return holding(prefix_task_cols=(2, 4, 1))


@ATTACKS.bad("has no tensor prompt_embeddings")
def file_of_no_tensor() -> Upload:
    return raw(with_header(b"{}"))


@ATTACKS.bad("has no tensor prefix_task_cols, which a MULTITASK_PROMPT_TUNING adapter needs")
def tasks_without_their_tensors() -> Upload:
    return send({**right(MULTITASK), TENSORS: right()[TENSORS]})


@ATTACKS.bad("prefix_task_cols has shape [3, 4, 1], but", "[2, 4, 1]")
def tasks_more_than_the_config_has() -> Upload:
    return holding(MULTITASK, prefix_task_cols=(3, 4, 1))


@ATTACKS.bad("prefix_task_rows has shape [2, 3, 8], but", "[2, 1, …]")
def ranks_more_than_the_config_has() -> Upload:
    return holding(MULTITASK, prefix_task_rows=(2, 3, 8))


@ATTACKS.bad("prefix_task_rows and prompt_embeddings differ in their last dimension")
def tasks_of_another_width() -> Upload:
    return holding(MULTITASK, prefix_task_rows=(2, 1, 9))


@ATTACKS.bad("the largest that fits this base model has")
def tensors_larger_than_any_adapter() -> Upload:
    return raw(tensor_file({"prompt_embeddings": (200_000, 8)}))


# Their values


def valued(kind: str, values: dict[str, np.ndarray], dtype: str = "F32") -> Upload:
    """An adapter of these values, which are written as they are."""
    shapes = {name: value.shape for name, value in values.items()}
    table = tensor_file(shapes, dtype, b"".join(value.tobytes() for value in values.values()))
    return send({CONFIG: dump(config_of(kind)), TENSORS: table})


def spoiled(value: float, kind: str = "PROMPT_TUNING", tensor: str = "prompt_embeddings", at: int = 9) -> Upload:
    """A right adapter with one value of another kind."""
    values = {name: np.full(shape, 0.5, "<f4") for name, shape in shapes_of(kind).items()}
    values[tensor].reshape(-1)[at] = value
    return valued(kind, values)


@ATTACKS.bad("tensor 'prompt_embeddings' holds 1 values that are NaN or infinite")
def soft_prompt_with_nan() -> Upload:
    return spoiled(float("nan"))


@ATTACKS.bad("tensor 'prompt_embeddings' holds 1 values that are NaN or infinite")
def soft_prompt_with_infinity() -> Upload:
    return spoiled(float("-inf"))


@ATTACKS.bad("tensor 'prompt_embeddings' holds 1 values that are NaN or infinite")
def prefix_with_nan_in_its_last_value() -> Upload:
    return spoiled(float("nan"), KV, at=-1)


@ATTACKS.bad("tensor 'prompt_embeddings' holds 32 values that are NaN or infinite")
def soft_prompt_of_signalling_nans() -> Upload:
    return valued("PROMPT_TUNING", {"prompt_embeddings": np.full(SHAPE, 0x7F800001, "<u4")})


@ATTACKS.bad("tensor 'prompt_embeddings' holds 32 values that are NaN or infinite")
def soft_prompt_of_half_infinities() -> Upload:
    return valued("PROMPT_TUNING", {"prompt_embeddings": np.full(SHAPE, np.inf, "<f2")}, "F16")


@ATTACKS.bad("tensor 'prompt_embeddings' holds 32 values that are NaN or infinite")
def soft_prompt_of_bfloat16_nans() -> Upload:
    return valued("PROMPT_TUNING", {"prompt_embeddings": np.full(SHAPE, 0x7FC0, "<u2")}, "BF16")


@ATTACKS.bad("tensor 'prefix_task_cols' holds 1 values that are NaN or infinite")
def nan_in_a_task_that_is_not_the_first() -> Upload:
    return spoiled(float("nan"), MULTITASK, "prefix_task_cols", -1)


@ATTACKS.bad("the soft prompt, once cast to bfloat16, holds 1 values")
def value_that_overflows_in_bfloat16() -> Upload:
    return spoiled(3.4e38)


@ATTACKS.bad("the prefix, once cast to bfloat16, holds 1 values")
def key_that_overflows_in_bfloat16() -> Upload:
    return spoiled(3.4e38, KV, at=0)


@ATTACKS.bad("the soft prompt, once cast to float32, holds 32 values")
def product_that_overflows() -> Upload:
    values = {name: np.full(shape, 1e30, "<f4") for name, shape in shapes_of(MULTITASK).items()}
    return valued(MULTITASK, values)


@ATTACKS.bad("row 3 of the soft prompt has a root mean square of 1e+06, over 10,000 times the embedding's")
def row_that_drowns_all_others() -> Upload:
    values = np.full(SHAPE, 0.5, "<f4")
    values[3] = 1e6
    return valued("PROMPT_TUNING", {"prompt_embeddings": values})


@ATTACKS.bad("row 2 of the keys of layer 1 has a root mean square of 1e+20")
def keys_that_draw_all_attention() -> Upload:
    values = np.full((ROWS, folders.KV_COLUMNS), 0.5, "<f4")
    values[2, 8:12] = 1e20
    return valued(KV, {"prompt_embeddings": values})


@ATTACKS.bad("row 0 of the values of layer 0 has a root mean square of 3e+38")
def values_whose_squares_overflow() -> Upload:
    values = np.full((ROWS, folders.KV_COLUMNS), 0.5, "<f4")
    values[0, 4:8] = 3e38
    return valued("CARTRIDGE", {"prompt_embeddings": values})


@ATTACKS.bad("of the soft prompt has a root mean square of")
def product_that_drowns_all() -> Upload:
    values = {name: np.full(shape, 1e3, "<f4") for name, shape in shapes_of(MULTITASK).items()}
    return valued(MULTITASK, values)


__all__ = ["ATTACKS", "json", "struct"]
