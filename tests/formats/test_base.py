"""The base model's dimensions are those of the model that transformers makes, and its digest is of the right things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.core import BaseModel
from server.formats.base import ModelFolderError, read_base_model
from tests.tiny_models import CONTEXT, SERVED, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("family", SERVED)
def test_dimensions_are_those_of_the_cache_that_the_model_fills(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    base = read_base_model(tmp_path, "a name")
    with torch.no_grad():
        layers = model(torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values.layers
    assert len(layers) == base.num_layers
    assert {(layer.keys.shape[1], layer.keys.shape[3]) for layer in layers} == {(base.num_kv_heads, base.head_dim)}
    assert (base.vocab_size, base.hidden_size) == tuple(model.get_input_embeddings().weight.shape)
    assert base.name == "a name"
    assert base.family == model.config.model_type
    assert base.context_length == CONTEXT


def test_the_name_is_the_folders_unless_given(folder: Path) -> None:
    assert read_base_model(folder).name == "tiny"


def test_a_sharded_model_has_the_digest_of_the_whole_one(folder: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert digest(tmp_path / "shards") == digest(folder)


def test_the_digest_is_of_config_tokenizer_tensors_and_embedding(folder: Path) -> None:
    seen = {digest(folder)}

    def is_new() -> bool:
        before = len(seen)
        seen.add(digest(folder))
        return len(seen) == before + 1

    edit_config(folder, rope_theta=1.0)
    assert is_new()
    (folder / "tokenizer.json").write_text("{}")
    assert is_new()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert is_new()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert is_new()
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    save_file(tensors, folder / "model.safetensors")
    assert is_new()


def test_the_digest_survives_a_save_by_another_release(folder: Path) -> None:
    before = digest(folder)
    edit_config(folder, transformers_version="99.0", _name_or_path="elsewhere")
    assert digest(folder) == before


def test_end_of_sequence_ids_come_from_the_generation_config_first(folder: Path) -> None:
    def ids_with(generation: object, config: object) -> tuple[int, ...]:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        edit_config(folder, eos_token_id=config)
        return read_base_model(folder).eos_token_ids

    assert ids_with([7, 8, 7], 2) == (7, 8)
    assert ids_with(None, 2) == (2,)
    assert ids_with(99_999, None) == ()  # outside the vocabulary


def test_attention_that_shares_one_head_is_recognised(folder: Path) -> None:
    edit_config(folder, multi_query=True, num_key_value_heads=None)
    assert read_base_model(folder).num_kv_heads == 1


def test_folders_that_are_no_model_are_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no model folder: it has no config\.json")
    refused(tmp_path / "absent", r"it has no config\.json")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    refused(folder, r"it has no model\.safetensors")
    (folder / "model.safetensors").write_bytes(weights[:-1])
    refused(folder, "its tensors end at byte")
    (folder / "model.safetensors").write_bytes(weights)
    edit_config(folder, num_hidden_layers=None)
    refused(folder, r"model_type 'llama'.*no positive num_hidden_layers")
    edit_config(folder, model_type=None)
    refused(folder, "names no model_type")
    (folder / "config.json").write_text("[1]")
    refused(folder, "not a JSON object")
    (folder / "config.json").write_text("{")
    refused(folder, "not valid JSON")


def test_an_index_that_points_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "does not map tensors to files of its folder")


def test_kv_columns_count_keys_and_values_of_all_layers(folder: Path) -> None:
    base: BaseModel = read_base_model(folder)
    assert base.kv_columns == 2 * base.num_layers * base.num_kv_heads * base.head_dim == 64


def digest(folder: Path) -> str:
    found = read_base_model(folder).digest
    assert found.startswith("sha256:")
    assert len(found) == 71
    return found


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(ModelFolderError, match=reason):
        read_base_model(folder)
