"""`adapter_model.bin` that PEFT saved becomes the safetensors file that PEFT saves of the same adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft import (
    CartridgeConfig,
    CPTConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from safetensors.torch import load_file

from server.convert.sources import SourceKind
from server.core import AdapterKind, BaseModel
from server.errors import AdapterRejected
from server.formats.judge import judge_folder
from server.formats.strict_json import Malformed
from tests.convert.tools import DTYPES, SAVES, converted, peft_model, read, soft_prompt, values
from tests.tiny_models import tiny_model

TASK = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
IDS = {"cpt_token_ids": [1, 2, 3, 4, 5], "cpt_mask": [1] * 5, "cpt_tokens_type_mask": [1, 2, 3, 3, 4]}
PREFIX = {**TASK, "prefix_projection": True, "encoder_hidden_size": 8}
METHODS: Mapping[str, Callable[[], PeftConfig]] = {
    "prompt_tuning": lambda: PromptTuningConfig(**TASK),
    "prefix_tuning": lambda: PrefixTuningConfig(**TASK),
    "prefix_tuning projected": lambda: PrefixTuningConfig(**PREFIX),
    "p_tuning": lambda: PromptEncoderConfig(**TASK, encoder_hidden_size=8),
    "multitask_prompt_tuning": lambda: MultitaskPromptTuningConfig(**TASK, num_tasks=3, num_ranks=2),
    "cpt": lambda: CPTConfig(**TASK, **IDS),
    "cartridge": lambda: CartridgeConfig(**TASK, num_frozen_tokens=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_peft_saves(method: str, base: BaseModel, tmp_path: Path) -> None:
    model = peft_model(METHODS[method]())
    model.save_pretrained(tmp_path / "old", safe_serialization=False)
    model.save_pretrained(tmp_path / "new")
    made = converted(tmp_path / "old/adapter_model.bin")

    assert made.kind is AdapterKind(method.split()[0])
    spec = judge_folder(made.target, base)
    assert (spec.kind, spec.num_virtual_tokens) == (made.kind, 5)
    saved, found = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "new", made.target))
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    config = (tmp_path / "new/adapter_config.json").read_bytes()
    assert (made.target / "adapter_config.json").read_bytes() == config


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "multitask_prompt_tuning"])
def test_peft_loads_what_comes_out(method: str, tmp_path: Path) -> None:
    model = peft_model(METHODS[method]())
    model.save_pretrained(tmp_path, safe_serialization=False)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), converted(tmp_path / "adapter_model.bin").target)
    before, after = (each.get_prompt_embedding_to_save("default") for each in (model, loaded))
    assert torch.equal(before, after)


@pytest.mark.parametrize("form", SAVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_forms(dtype: str, form: str, tmp_path: Path) -> None:
    model = peft_model(METHODS["multitask_prompt_tuning"](), DTYPES[dtype])
    model.save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "adapter_model.bin"
    saved = torch.load(path, weights_only=True)
    SAVES[form](saved, path)
    adapter = read(SourceKind.PEFT_BIN, path)
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {dtype}
    assert adapter.tensors.keys() == saved.keys()
    assert all(torch.equal(values(adapter, name), saved[name]) for name in saved)


@pytest.mark.parametrize("view", ["rows of a larger table", "transposed", "every second column"])
@pytest.mark.parametrize("form", SAVES)
def test_views_of_other_tensors(view: str, form: str, tmp_path: Path) -> None:
    """torch.save keeps the whole storage, and how the tensor lies in it."""
    table = {
        "rows of a larger table": soft_prompt(9)[2:7],
        "transposed": soft_prompt(32, 5).T,
        "every second column": soft_prompt(5, 64)[:, ::2],
    }[view]
    peft_model(METHODS["prompt_tuning"]()).save_pretrained(tmp_path, safe_serialization=False)
    SAVES[form]({"prompt_embeddings": table}, tmp_path / "adapter_model.bin")
    assert torch.equal(values(read(SourceKind.PEFT_BIN, tmp_path / "adapter_model.bin")), table)


def test_notes_are_the_configs_warnings(tmp_path: Path) -> None:
    peft_model(METHODS["prompt_tuning"]()).save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"CAUSAL_LM"', "null"))
    (note,) = converted(tmp_path / "adapter_model.bin").notes
    assert note.startswith("task_type is null, taken as CAUSAL_LM")


def test_what_is_no_prompt_learning_is_refused(tmp_path: Path) -> None:
    model = peft_model(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(AdapterRejected, match="peft_type 'LORA' is not prompt learning"):
        converted(tmp_path / "adapter_model.bin")


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        ({"prompt_embeddings": torch.ones(4, 32)}, "has 4 rows, but adapter_config.json speaks of 5"),
        ({"prompt_embeddings": torch.ones(5)}, r"has shape \[5\]; needed are 2 dimensions"),
        ({"prompt_embeddings": torch.ones(5, 0)}, r"has shape \[5, 0\]"),
        ({"prompt_embeddings": torch.tensor(1.0)}, r"has shape \[\]"),
        ({"prompt_embeddings": torch.ones(5, 32), "score": torch.ones(2)}, "holds the tensors 'prompt_embeddings, sco"),
        ({"prompt_embeddings": 5}, "something else than tensors"),
        (torch.ones(5, 32), "no dict of tensors"),
        ({"prompt_embeddings": torch.ones(5, 32, dtype=torch.int64)}, "holds Long tensors; needed are float32"),
        ({"prompt_embeddings": torch.ones(5, 1).expand(5, 32)}, r"repeats the elements .* \.contiguous\(\)"),
        ({"prompt_embeddings": torch.eye(5).to_sparse()}, r"a sparse tensor: .* \.to_dense\(\)"),
        ({"prompt_embeddings": torch.nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
    ],
)
def test_other_contents_are_refused(saved: object, reason: str, tmp_path: Path) -> None:
    peft_model(METHODS["prompt_tuning"]()).save_pretrained(tmp_path, safe_serialization=False)
    torch.save(saved, tmp_path / "adapter_model.bin")
    with pytest.raises(Malformed, match=reason):
        read(SourceKind.PEFT_BIN, tmp_path / "adapter_model.bin")


def test_a_file_without_its_config_is_refused(tmp_path: Path) -> None:
    torch.save({"prompt_embeddings": soft_prompt()}, tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterRejected, match=r"has no adapter_config\.json beside it"):
        converted(tmp_path / "adapter_model.bin")


def test_a_config_beyond_measure_is_refused(tmp_path: Path) -> None:
    peft_model(METHODS["prompt_tuning"]()).save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"x": "x" * 2**20}))
    with pytest.raises(AdapterRejected, match=r"adapter_config\.json beside it: it has .* bytes, more than"):
        converted(tmp_path / "adapter_model.bin")


def test_a_folder_is_its_only_file(tmp_path: Path) -> None:
    peft_model(METHODS["prompt_tuning"]()).save_pretrained(tmp_path / "old", safe_serialization=False)
    shutil.copy(tmp_path / "old/README.md", tmp_path / "old/notes.md")
    assert converted(tmp_path / "old").source.file == tmp_path / "old/adapter_model.bin"
