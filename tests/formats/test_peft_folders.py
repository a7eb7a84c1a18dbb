"""Folders that PEFT itself has saved are accepted, for bases whose key-value caches differ in make."""

from __future__ import annotations

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
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from server.core import AdapterKind
from server.errors import AdapterIncompatible, AdapterRejected
from server.formats.base import read_base_model
from server.formats.judge import judge_folder
from tests.tiny_models import tiny_model

TASK = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
IDS = {"cpt_token_ids": [1, 2, 3, 4, 5], "cpt_mask": [1] * 5, "cpt_tokens_type_mask": [1, 2, 3, 3, 4]}
METHODS: Mapping[str, tuple[AdapterKind, Callable[[], PeftConfig]]] = {
    "prompt": (AdapterKind.PROMPT_TUNING, lambda: PromptTuningConfig(**TASK)),
    "multitask": (
        AdapterKind.MULTITASK_PROMPT_TUNING,
        lambda: MultitaskPromptTuningConfig(**TASK, num_tasks=3, num_ranks=2),
    ),
    "p_tuning_mlp": (AdapterKind.P_TUNING, lambda: PromptEncoderConfig(**TASK, encoder_hidden_size=8)),
    "p_tuning_lstm": (
        AdapterKind.P_TUNING,
        lambda: PromptEncoderConfig(**TASK, encoder_hidden_size=8, encoder_reparameterization_type="LSTM"),
    ),
    "cpt": (AdapterKind.CPT, lambda: CPTConfig(**TASK, **IDS)),
    "prefix": (AdapterKind.PREFIX_TUNING, lambda: PrefixTuningConfig(**TASK)),
    "prefix_projected": (
        AdapterKind.PREFIX_TUNING,
        lambda: PrefixTuningConfig(**TASK, prefix_projection=True, encoder_hidden_size=8),
    ),
    "cartridge": (AdapterKind.CARTRIDGE, lambda: CartridgeConfig(**TASK, num_frozen_tokens=1)),
}
FAMILIES = ("llama", "qwen3", "gpt_bigcode", "opt")  # grouped, wider heads than hidden, one head, every head


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<family>/` is a model, `<family>/<method>/` an adapter that PEFT saved for it."""
    root = tmp_path_factory.mktemp("peft")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(root / family)
        for method, (_, config) in METHODS.items():
            save(family, config(), root / family / method)
    return root


def save(family: str, config: PeftConfig, folder: Path) -> None:
    torch.manual_seed(0)
    get_peft_model(tiny_model(family), config).save_pretrained(folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_saves_is_accepted(family: str, method: str, saved: Path) -> None:
    spec = judge_folder(saved / family / method, read_base_model(saved / family))
    assert spec.kind is METHODS[method][0]
    assert spec.num_virtual_tokens == 5
    assert spec.num_tasks == (3 if method == "multitask" else 0)
    assert spec.warnings == ()


@pytest.mark.parametrize("method", METHODS)
def test_what_peft_saved_for_another_base_is_refused(method: str, saved: Path, tmp_path: Path) -> None:
    if METHODS[method][0].holds_kv:
        other = saved / "qwen3"
        reason = "2 layers × 2 kv heads × 8; the base model qwen3 has 2 layers × 2 kv heads × 16"
    else:
        other = tmp_path / "wider"
        tiny_model("llama_gqa3").save_pretrained(other)
        reason = "the soft prompt is for hidden size 32; the base model wider has 48"
    with pytest.raises(AdapterIncompatible, match=reason):
        judge_folder(saved / "llama" / method, read_base_model(other))


def test_lora_and_pickles_are_refused(saved: Path, tmp_path: Path) -> None:
    base = read_base_model(saved / "llama")
    save("llama", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]), tmp_path / "lora")
    with pytest.raises(AdapterRejected, match="'LORA' is not prompt learning"):
        judge_folder(tmp_path / "lora", base)
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(**TASK))
    model.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    with pytest.raises(AdapterRejected, match=r"'adapter_model\.bin' may hold a pickle"):
        judge_folder(tmp_path / "pickle", base)
    (tmp_path / "pickle" / "adapter_model.bin").rename(tmp_path / "pickle" / "adapter_model.safetensors")
    with pytest.raises(AdapterRejected, match="it is a zip or a PyTorch checkpoint"):
        judge_folder(tmp_path / "pickle", base)
