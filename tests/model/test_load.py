"""A base model comes from a local folder with safetensors, or is refused with a reason that helps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from server.core import BaseModel, EngineConfig
from server.engine.model.load import from_module, load_model
from server.engine.model.support import UnsupportedModel, require_supported_config
from tests.tiny_models import CONTEXT, VOCAB_SIZE, tiny_model

LLAMA = BaseModel("tiny", "llama", "sha256:0", VOCAB_SIZE, 32, 2, 2, 8, CONTEXT, (2,))


def config(path: Path, base: BaseModel = LLAMA, dtype: str = "float32") -> EngineConfig:
    return EngineConfig(
        model_path=str(path),
        base=base,
        dtype=dtype,
        device="cpu",
        attention="cpu",
        kv_memory=2**20,
        prefix_memory=2**19,
        max_model_len=128,
        max_virtual_tokens=64,
        max_seqs=4,
        step_tokens=64,
        threads=1,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_loaded_in_the_wanted_dtype(folder: Path, dtype: str) -> None:
    model = load_model(config(folder, dtype=dtype))
    assert model.dtype is getattr(torch, dtype)
    assert (model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim) == (2, 4, 2, 8)
    assert (model.vocab_size, model.hidden_size, model.windows) == (VOCAB_SIZE, 32, (None, None))
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.kv_shape(3, 64).num_blocks == 3


def test_windows_are_found_per_layer() -> None:
    assert from_module(tiny_model("gemma3"), max_model_len=128).windows == (8, None)


@pytest.mark.parametrize(("name", "said"), [("num_kv_heads", 4), ("head_dim", 16), ("vocab_size", 500)])
def test_a_model_that_is_not_the_announced_one_is_refused(folder: Path, name: str, said: int) -> None:
    with pytest.raises(UnsupportedModel, match=f"its {name} is .*, but its configuration was read as {said}"):
        load_model(config(folder, base=replace(LLAMA, **{name: said})))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_model(config(tmp_path / "nowhere"))


def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = tiny_model("llama").state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"cannot be loaded.*safetensors"):
        load_model(config(folder))


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "novel", "auto_map": {"AutoConfig": "novel.Config", "AutoModelForCausalLM": "novel.Net"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "novel.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_model(config(folder))
    assert not (folder / "ran").exists()


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    tiny_model("t5").config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"'t5'.*encoder-decoder"):
        load_model(config(tmp_path))


def test_more_positions_than_the_model_has_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="trial forward up to position 599 failed"):
        from_module(tiny_model("gpt2"), max_model_len=600)


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="its embedding is 300 x 16, not 300 x 32"):
        from_module(tiny_model("opt", word_embed_proj_dim=16), max_model_len=64)


@pytest.mark.parametrize("family", ["bloom", "falcon", "gptj", "mpt"])
def test_attention_of_its_own_is_found_out_under_an_unknown_name(family: str) -> None:
    model = tiny_model(family)
    model.config.model_type = "novel"
    with pytest.raises(UnsupportedModel, match=r"'novel'.*attention interface"):
        from_module(model, max_model_len=64)


def test_layers_that_share_keys_are_refused() -> None:
    model = tiny_model("llama")
    model.config.num_kv_shared_layers = 1
    with pytest.raises(UnsupportedModel, match="share keys and values"):
        from_module(model, max_model_len=64)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Gemma3nTextConfig", "share keys and values"),
        ("Gemma4TextConfig", "share keys and values"),
        ("JambaConfig", "state-space"),
        ("BambaConfig", "state-space"),
        ("FalconH1Config", "state-space"),
        ("Qwen3NextConfig", "state-space"),
        ("RecurrentGemmaConfig", "state-space"),
        ("MiniMaxConfig", "state-space"),
        ("Llama4TextConfig", "'chunked_attention'"),
        ("DeepseekV2Config", "MLA"),
        ("BartConfig", "encoder-decoder"),
    ],
)
def test_configurations_that_cannot_be_served_are_refused_with_the_reason(name: str, reason: str) -> None:
    settings = getattr(transformers, name)()
    with pytest.raises(UnsupportedModel, match=f"'{settings.model_type}'.*{reason}"):
        require_supported_config(settings)
