"""What is downloaded is what PEFT saved: it loads it, and computes the same."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from server.core import AdapterKind
from tests.http import folders
from tests.http.conftest import Api
from tests.parity.oracle import ask_peft, save_adapter

PROMPT = [72, 101, 108, 108, 111]


def module() -> LlamaForCausalLM:
    """A model of random weights with the sizes of the base model that these tests serve."""
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=folders.HIDDEN,
        intermediate_size=16,
        num_hidden_layers=folders.LAYERS,
        num_attention_heads=folders.HIDDEN // folders.HEAD_DIM,
        num_key_value_heads=folders.KV_HEADS,
        head_dim=folders.HEAD_DIM,
        vocab_size=folders.VOCABULARY,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", AdapterKind)
async def test_a_download_loads_in_peft_unchanged(api: Api, tmp_path: Path, kind: AdapterKind) -> None:
    saved = save_adapter(module(), kind, tmp_path / "saved", 6)
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: (saved.folder / name).read_bytes() for name in names}
    assert (await api.publish("mine", files)).status_code == 201
    download = await api.client.get("/v1/adapters/mine/versions/v1/download")
    assert download.status_code == 200
    with zipfile.ZipFile(io.BytesIO(download.content)) as archive:
        archive.extractall(tmp_path / "downloaded")
    found = replace(saved, folder=tmp_path / "downloaded")
    assert {name: (found.folder / name).read_bytes() for name in names} == files
    assert isinstance(peft.PeftConfig.from_pretrained(str(found.folder)), peft.PromptLearningConfig)
    before, after = (ask_peft(module, adapter, PROMPT, 3) for adapter in (saved, found))
    assert after.tokens == before.tokens
    assert torch.equal(after.logits, before.logits)
