"""Files of TGIS, caikit and KoboldAI hold one soft prompt, which becomes a prompt tuning adapter."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import MultitaskPromptTuningConfig, PeftModel, PromptTuningConfig
from safetensors.torch import load_file

from server.convert.isolation import Conversion
from server.convert.sources import SourceKind
from server.core import AdapterKind, BaseModel
from server.errors import AdapterRejected
from server.formats.judge import judge_folder
from server.formats.strict_json import Malformed
from tests.convert.tools import (
    DTYPES,
    META,
    SAVES,
    caikit_decoder,
    converted,
    kobold_zip,
    peft_model,
    read,
    soft_prompt,
    values,
)
from tests.tiny_models import tiny_model

TASK = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}


def loads(made: Conversion, base: BaseModel, table: torch.Tensor) -> None:
    """The folder is taken by the server, and by PEFT, as this table."""
    spec = judge_folder(made.target, base)
    assert (spec.kind, spec.num_virtual_tokens) == (AdapterKind.PROMPT_TUNING, len(table))
    assert spec.warnings == ()
    assert torch.equal(load_file(made.target / "adapter_model.safetensors")["prompt_embeddings"], table)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), made.target)
    assert torch.equal(loaded.get_prompt_embedding_to_save("default").to(table.dtype), table)


def test_caikit_prompt_tuning(base: BaseModel, tmp_path: Path) -> None:
    table = peft_model(PromptTuningConfig(**TASK)).get_prompt_embedding_to_save("default")
    made = converted(caikit_decoder(table, tmp_path / "caikit"))
    loads(made, base, table)
    assert (made.shape, made.dtype, made.notes) == ((5, 32), "F32", ())


def test_caikit_multitask_prompt_tuning(base: BaseModel, tmp_path: Path) -> None:
    """caikit saves what task 0 makes of it, as it comes from the encoder: part of a graph, one dimension squeezed."""
    model = peft_model(MultitaskPromptTuningConfig(**TASK, num_tasks=1, num_ranks=2))
    encoder, tokens = model.prompt_encoder["default"], model.prompt_tokens["default"].unsqueeze(0)
    table = torch.squeeze(encoder(tokens, task_ids=torch.zeros(1, dtype=torch.long)), dim=0)
    loads(converted(caikit_decoder(table, tmp_path / "caikit")), base, table.detach())


@pytest.mark.parametrize("form", SAVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tgis_dtypes_and_forms(dtype: str, form: str, tmp_path: Path) -> None:
    table = soft_prompt().to(DTYPES[dtype])
    adapter = read(SourceKind.TGIS, caikit_decoder(table, tmp_path / "caikit", SAVES[form]))
    assert adapter.tensors["prompt_embeddings"].dtype == dtype
    assert torch.equal(values(adapter), table)


def test_an_encoders_prompt_is_refused(tmp_path: Path) -> None:
    torch.save(soft_prompt(), caikit_decoder(soft_prompt(), tmp_path / "caikit").with_name("encoder.pt"))
    for name in ("", "encoder.pt", "decoder.pt"):
        with pytest.raises(AdapterRejected, match="the server runs decoders only"):
            converted(tmp_path / "caikit" / name)


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        ({"prompt_embeddings": soft_prompt()}, "a dict of .*, not one bare tensor"),
        ([soft_prompt()], "it holds no tensor"),
        (torch.ones(2, 3, 4), r"has shape \[2, 3, 4\]; needed is \[virtual tokens, hidden size\]"),
        (torch.ones(0, 4), r"has shape \[0, 4\]"),
    ],
)
def test_other_contents_are_refused(saved: Any, reason: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "decoder.pt")
    with pytest.raises(Malformed, match=reason):
        read(SourceKind.TGIS, tmp_path / "decoder.pt")


@pytest.mark.parametrize("packed", [zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_kobold(packed: int, base: BaseModel, tmp_path: Path) -> None:
    made = converted(kobold_zip(soft_prompt().numpy(), tmp_path / "tale.zip", packed=packed))
    loads(made, base, soft_prompt())
    assert made.notes == (
        "name: 'Tale'",
        "author: 'A. Writer'",
        'description: "a tale\'s voice"',
        "supported: ['Generic 6B']",
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_kobold_dtypes(dtype: str, order: Any, tmp_path: Path) -> None:
    table = soft_prompt().to(DTYPES[dtype])
    adapter = read(SourceKind.KOBOLDAI, kobold_zip(np.array(table.numpy(), order=order), tmp_path / "tale.zip"))
    assert adapter.tensors["prompt_embeddings"].dtype == dtype
    assert torch.equal(values(adapter), table)


@pytest.mark.parametrize("descr", ["|V2", "<V2"])
def test_kobold_bfloat16(descr: str, tmp_path: Path) -> None:
    """JAX's bfloat16 is a type of two bytes to numpy; newer versions of it also say the order of the bytes."""
    table = soft_prompt().to(torch.bfloat16)
    path = kobold_zip(table.view(torch.int16).numpy().view("V2"), tmp_path / "plain.zip")
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "tale.zip", "w", zipfile.ZIP_LZMA) as tale:
        tale.writestr("tensor.npy", plain.read("tensor.npy").replace(b"|V2", descr.encode()))
    adapter = read(SourceKind.KOBOLDAI, tmp_path / "tale.zip")
    assert adapter.tensors["prompt_embeddings"].dtype == "BF16"
    assert torch.equal(values(adapter), table)


def test_kobold_without_a_usable_meta(tmp_path: Path) -> None:
    assert converted(kobold_zip(soft_prompt().numpy(), tmp_path / "a.zip", None)).notes == ()
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("meta.json", json.dumps(META)[:-1])
    (tmp_path / "b").mkdir()
    (tmp_path / "a.zip").rename(tmp_path / "b/a.zip")
    (note,) = converted(tmp_path / "b/a.zip").notes
    assert note.startswith("meta.json is left out: it is not valid JSON")


def test_notes_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    made = converted(kobold_zip(soft_prompt().numpy(), tmp_path / "a.zip", {"name": "\x1b[2J", "author": "x" * 500}))
    assert made.notes[0] == r"name: '\x1b[2J'"
    assert max(map(len, made.notes)) < 100


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((5, 32)), "has dtype '<f8'; needed is float16"),
        (np.ones((5, 32), ">f4"), "has dtype '>f4'"),
        (np.ones(5, "f4"), "no array of two dimensions"),
        (np.ones((1, 5, 32), "f4"), "no array of two dimensions"),
        (np.ones((5, 0), "f4"), r"has shape \[5, 0\]"),
        (np.ones((5, 2), [("a", "u1"), ("b", "u1")]), "no array of two dimensions"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray[Any, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=reason):
        read(SourceKind.KOBOLDAI, kobold_zip(array, tmp_path / "a.zip"))


def test_other_zips_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(Malformed, match=r"has no tensor\.npy at its top"):
        read(SourceKind.KOBOLDAI, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("tensor.npy", bytes(100))
    with pytest.raises(Malformed, match="packed in another way than stored, deflated or LZMA"):
        read(SourceKind.KOBOLDAI, tmp_path / "a.zip")
