"""Converting a GGUF file into a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from server.basemodel import BaseModelError
from server.basemodel.convert import FILES, convert, unpermute
from server.basemodel.weights import to_bfloat16
from tests.basemodel.gguf_files import (
    CONTEXT,
    HEAD_DIM,
    HEADS,
    WORDS,
    floats,
    tiny_gguf,
    tiny_metadata,
    tiny_weights,
    write_gguf,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    convert(tiny_gguf(tmp_path / "m.gguf"), target)
    return target


def test_bfloat16_rounds_as_torch_does() -> None:
    edges = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.4e38, -3.4e38, float("inf"), float("-inf"), 1e-45, 1e-40]
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([np.array(edges, dtype=np.float32), random[~np.isnan(random)]])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), expected)


def test_bfloat16_keeps_nan() -> None:
    pattern = to_bfloat16(np.array([np.nan], dtype=np.float32)).view(np.int16)
    assert torch.from_numpy(pattern).view(torch.bfloat16).isnan().all()


def test_unpermute_takes_apart_what_the_rotary_halves_interleave() -> None:
    # Within a head of 4 rows, GGUF holds rows 0, 2, 1, 3 of the original.
    rows = np.array([0, 2, 1, 3, 4, 6, 5, 7], dtype=np.float32)[:, None]
    np.testing.assert_array_equal(unpermute(rows, 2)[:, 0], np.arange(8))


def test_the_config_is_read_by_transformers(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.num_attention_heads, config.num_key_value_heads) == ("llama", 4, 2)
    assert (config.head_dim, config.max_position_embeddings) == (HEAD_DIM, CONTEXT)
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_every_weight_arrives_under_its_name_in_bfloat16(folder: Path) -> None:
    weights = tiny_weights()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert len(file.keys()) == len(weights)
        for name, source in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
            ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
            ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight"),
            ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"),
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ]:
            assert torch.equal(file.get_tensor(name), torch.from_numpy(weights[source]).to(torch.bfloat16))
        query = unpermute(weights["blk.0.attn_q.weight"], HEADS)
        assert torch.equal(
            file.get_tensor("model.layers.0.self_attn.q_proj.weight"), torch.from_numpy(query).to(torch.bfloat16)
        )


def test_the_folder_loads_and_answers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[1, 4, 5]])).logits
    assert logits.shape == (1, 3, len(WORDS))
    assert logits.isfinite().all()


def test_the_tokenizer_splits_every_digit_and_merges_letters(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("ab a  12") == ["ab", "Ġa", "Ġ", "Ġ", "1", "2"]
    assert tokenizer("<|im_end|>ab")["input_ids"] == [2, WORDS.index("ab")]
    assert tokenizer.decode(tokenizer("ab a 12")["input_ids"]) == "ab a 12"


def test_padding_is_the_end_token_and_the_chat_template_is_kept(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


def test_the_same_file_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    convert(tmp_path / "m.gguf", again)
    for name in FILES:
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_an_output_matrix_of_its_own_unties_the_embeddings(tmp_path: Path) -> None:
    tensors = {name: floats(array) for name, array in tiny_weights().items()}
    path = write_gguf(tmp_path / "m.gguf", tiny_metadata(), tensors | {"output.weight": tensors["token_embd.weight"]})
    convert(path, tmp_path)
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(("key", "other"), [("general.architecture", "gemma3"), ("tokenizer.ggml.pre", "qwen2")])
def test_another_family_or_tokenizer_is_refused(tmp_path: Path, key: str, other: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_metadata() | {key: other}, {})
    with pytest.raises(BaseModelError, match=other):
        convert(path, tmp_path)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", tiny_metadata(), {"blk.0.attn_q.bias": floats(np.zeros(4, dtype=np.float32))}
    )
    with pytest.raises(BaseModelError, match=r"blk\.0\.attn_q\.bias"):
        convert(path, tmp_path)
