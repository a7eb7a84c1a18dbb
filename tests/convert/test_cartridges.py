"""Cartridges of HazyResearch become PEFT's CARTRIDGE with the same keys and values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import CartridgeConfig, PeftModel
from safetensors.torch import load_file

from server.convert.sources import SourceKind
from server.core import AdapterKind, BaseModel
from server.formats.judge import judge_folder
from server.formats.strict_json import Malformed
from tests.convert.tools import DTYPES, SAVES, TrainableCache, converted, kv, peft_model, read
from tests.tiny_models import tiny_model


def cartridge(num_frozen: int = 1, dtype: torch.dtype = torch.float32) -> TrainableCache:
    """A cartridge for the tiny llama, of six tokens."""
    return TrainableCache(*kv(), num_frozen).to(dtype)


def expected(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """PEFT's layout of it: [token, layer, key or value, kv head, head size]."""
    keys, values = kv()
    layers = [torch.stack([key[0], value[0]]) for key, value in zip(keys, values, strict=True)]
    return torch.stack(layers).permute(3, 0, 1, 2, 4).reshape(6, -1).to(dtype)


@pytest.mark.parametrize(
    ("num_frozen", "dtype", "form"),
    [(0, "F32", "zip"), (1, "BF16", "zip"), (6, "F16", "zip"), (0, "BF16", "legacy"), (2, "F32", "legacy")],
)
def test_what_the_tool_saves(num_frozen: int, dtype: str, form: str, base: BaseModel, tmp_path: Path) -> None:
    made = converted(cartridge(num_frozen, DTYPES[dtype]).save(tmp_path / "cache-step12.pt", SAVES[form]))
    spec = judge_folder(made.target, base)
    assert (spec.kind, spec.num_virtual_tokens, made.dtype) == (AdapterKind.CARTRIDGE, 6, dtype)
    found = load_file(made.target / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(found, expected(DTYPES[dtype]))
    assert made.notes == (f"{num_frozen} of 6 tokens were frozen in training",)


def test_peft_sees_the_same_keys_and_values(tmp_path: Path) -> None:
    """PEFT's cache of the converted cartridge is the tool's: its frozen and then its trainable tokens."""
    made = converted(cartridge(2).save(tmp_path / "cache_last.pt"))
    loaded = PeftModel.from_pretrained(tiny_model("llama"), made.target)
    cache = loaded.get_prompt(batch_size=1)
    for layer, key, value in zip(cache.layers, *kv(), strict=True):
        assert torch.equal(layer.keys, key)
        assert torch.equal(layer.values, value)
    assert loaded.peft_config["default"].num_frozen_tokens == 2


def test_the_config_is_what_peft_would_write(tmp_path: Path) -> None:
    """Every key is one of PEFT's, and those that describe the tensors have PEFT's values."""
    config = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, num_frozen_tokens=1)
    peft_model(config).save_pretrained(tmp_path / "peft")
    made = converted(cartridge().save(tmp_path / "cache_last.pt"))
    theirs, ours = (json.loads((p / "adapter_config.json").read_text()) for p in (tmp_path / "peft", made.target))
    assert ours.keys() <= theirs.keys()
    differs = {key for key in ours if ours[key] != theirs[key]}
    assert differs <= {"base_model_name_or_path", "auto_mapping"}


def test_files_of_mid_2025(tmp_path: Path) -> None:
    made = converted(cartridge().save(tmp_path / "cache-epoch1.pt", frozen="fixed"))
    assert torch.equal(load_file(made.target / "adapter_model.safetensors")["prompt_embeddings"], expected())


@pytest.mark.parametrize(
    "change", ["missing", "more", "a head", "a layer", "dtype", "shape", "empty", "no list", "shared"]
)
def test_other_contents_are_refused(change: str, tmp_path: Path) -> None:
    cache = cartridge()
    saved: dict[str, object] = {
        f"{part}_{what}": list(getattr(cache, f"{part}_{what}"))
        for part in ("trainable", "frozen")
        for what in ("keys", "values")
    }
    keys, values = kv(heads=4)
    match change:
        case "missing":
            del saved["frozen_keys"]
            reason = "a cartridge has trainable_keys"
        case "more":
            saved["segment_info"] = []
            reason = "and nothing else"
        case "a head":
            saved["trainable_keys"], saved["trainable_values"] = keys, values
            reason = r"its frozen tokens have 2 layers × 2 kv heads × 8, its trainable ones 2 × 4 × 8"
        case "a layer":
            saved["trainable_keys"] = [*kv()[0], kv()[0][0]]
            reason = "its trainable_keys have 3 layers, its trainable_values 2"
        case "dtype":
            saved["frozen_keys"] = [each.half() for each in cache.frozen_keys]
            reason = "several dtypes, F16, F32"
        case "shape":
            saved["trainable_values"] = [kv()[1][0], kv(tokens=7)[1][1]]
            reason = "layers differ in shape"
        case "empty":
            saved = {name: [] for name in saved}
            reason = "its trainable_keys have 0 layers"
        case "no list":
            saved["trainable_keys"] = {"0": 1}
            reason = "its trainable_keys is no list of tensors"
        case "shared":
            tensor = torch.ones(1, 2, 500, 8)
            saved = dict.fromkeys(saved, [tensor] * 20)
            reason = "share their bytes"
    torch.save(saved, tmp_path / "cache_last.pt")
    with pytest.raises(Malformed, match=reason):
        read(SourceKind.CARTRIDGE, tmp_path / "cache_last.pt")
