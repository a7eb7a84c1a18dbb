"""Adapter files become tables and prefix KVs, or are refused with a reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from server.core import AdapterKind, AdapterSource, BaseModel, PrefixKey
from server.engine.prefixes.magnitude import require_sane_magnitude
from server.engine.prefixes.read import AdapterTensors, read_adapter
from server.errors import AdapterIncompatible, AdapterRejected

BASE = BaseModel("tiny", "llama", "sha256:0", 300, 32, 3, 2, 8, 512, (2,))


@dataclass(frozen=True)
class BaseScale:
    embedding: float
    kv: Tensor


def write(
    folder: Path, kind: AdapterKind, rows: int, task: int = 0, sqrt: bool = False, **tensors: Tensor
) -> AdapterSource:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return AdapterSource(
        PrefixKey("base", sha256, task, rows), kind, str(path), sha256, rows, scale_by_sqrt_hidden=sqrt
    )


def test_soft_prompt_is_cast(tmp_path: Path) -> None:
    values = torch.randn(5, 32)
    source = write(tmp_path, AdapterKind.PROMPT_TUNING, 5, prompt_embeddings=values)
    table = read_adapter(source, BASE, torch.bfloat16).table
    assert table is not None
    assert torch.equal(table, values.bfloat16())


def test_prefix_kv_layout(tmp_path: Path) -> None:
    flat = torch.randn(4, BASE.kv_columns)
    source = write(tmp_path, AdapterKind.PREFIX_TUNING, 4, prompt_embeddings=flat)
    kv = read_adapter(source, BASE, torch.float32).kv
    assert kv is not None
    assert kv.shape == (3, 2, 2, 4, 8)
    layer, part, head, row, column = 2, 1, 1, 3, 5
    assert kv[layer, part, head, row, column] == flat[row, ((2 * layer + part) * 2 + head) * 8 + column]


def test_multitask_table_is_the_task_s_own(tmp_path: Path) -> None:
    shared, cols, rows = torch.randn(5, 32), torch.randn(3, 5, 2), torch.randn(3, 2, 32)
    kind = AdapterKind.MULTITASK_PROMPT_TUNING
    tensors = {"prompt_embeddings": shared, "prefix_task_cols": cols, "prefix_task_rows": rows}
    for task in range(3):
        table = read_adapter(write(tmp_path, kind, 5, task, **tensors), BASE, torch.float32).table
        assert table is not None
        torch.testing.assert_close(table, shared * (cols[task] @ rows[task]))
    with pytest.raises(AdapterRejected, match="task 3"):
        read_adapter(write(tmp_path, kind, 5, 3, **tensors), BASE, torch.float32)


def test_old_gemma_rows_are_scaled(tmp_path: Path) -> None:
    values = torch.randn(5, 32)
    source = write(tmp_path, AdapterKind.P_TUNING, 5, sqrt=True, prompt_embeddings=values)
    table = read_adapter(source, BASE, torch.float32).table
    assert table is not None
    torch.testing.assert_close(table, values * 32**0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    values = torch.randn(5, 32)
    values[3, 7] = bad
    source = write(tmp_path, AdapterKind.PROMPT_TUNING, 5, prompt_embeddings=values)
    with pytest.raises(AdapterRejected, match="1 values that are NaN or infinite"):
        read_adapter(source, BASE, torch.float32)


def test_values_that_overflow_in_the_cast_are_refused(tmp_path: Path) -> None:
    values = torch.randn(4, BASE.kv_columns)
    values[0, 0] = 3.4e38  # finite in float32, rounds to infinity in bfloat16
    source = write(tmp_path, AdapterKind.CARTRIDGE, 4, prompt_embeddings=values)
    read_adapter(source, BASE, torch.float32)
    with pytest.raises(AdapterRejected, match="once cast to bfloat16"):
        read_adapter(source, BASE, torch.bfloat16)


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, AdapterKind.PROMPT_TUNING, 5, prompt_embeddings=torch.randn(5, 32))
    path = Path(source.path)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(AdapterRejected, match="sha256"):
        read_adapter(source, BASE, torch.float32)
    path.unlink()
    with pytest.raises(AdapterRejected, match="cannot be read"):
        read_adapter(source, BASE, torch.float32)


def test_a_wrong_shape_says_what_the_base_needs(tmp_path: Path) -> None:
    source = write(tmp_path, AdapterKind.PROMPT_TUNING, 5, prompt_embeddings=torch.randn(5, 64))
    with pytest.raises(AdapterIncompatible, match=r"\[5, 64\].*\[5, 32\]"):
        read_adapter(source, BASE, torch.float32)


def test_magnitude() -> None:
    scale = BaseScale(embedding=0.1, kv=torch.full((3, 2), 2.0))
    sane = torch.randn(5, 32)
    require_sane_magnitude(AdapterTensors(table=sane), scale)
    require_sane_magnitude(AdapterTensors(kv=torch.randn(3, 2, 2, 4, 8)), scale)
    loud = sane.clone()
    loud[3] *= 1e5
    with pytest.raises(AdapterRejected, match="row 3 of the soft prompt"):
        require_sane_magnitude(AdapterTensors(table=loud), scale)
    kv = torch.randn(3, 2, 2, 4, 8)
    kv[1, 0, :, 2] *= 1e6
    with pytest.raises(AdapterRejected, match="row 2 of the keys of layer 1"):
        require_sane_magnitude(AdapterTensors(kv=kv), scale)
