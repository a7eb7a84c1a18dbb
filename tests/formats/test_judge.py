"""Adapter folders: right ones become a spec, each wrong one is refused for its own reason."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from server.core import AdapterKind
from server.errors import AdapterIncompatible, AdapterRejected
from server.formats.judge import AdapterLimits, judge_folder, max_folder_bytes
from server.formats.spec import FieldRule
from tests.formats.folders import BASE, CONFIG, ROWS, SIDECAR, TENSORS, make_folder, safetensors, shapes_of

SOFT, KV, MULTI = AdapterKind.PROMPT_TUNING, AdapterKind.PREFIX_TUNING, AdapterKind.MULTITASK_PROMPT_TUNING
Make = Callable[[Path], object]


@pytest.mark.parametrize("kind", AdapterKind)
def test_a_right_folder_of_each_kind(kind: AdapterKind, tmp_path: Path) -> None:
    spec = judge_folder(make_folder(tmp_path, kind), BASE)
    assert spec.kind is kind
    assert spec.num_virtual_tokens == ROWS
    assert spec.tensors == TENSORS
    assert spec.tensors_sha256 == hashlib.sha256((tmp_path / TENSORS).read_bytes()).hexdigest()
    assert spec.num_tasks == (3 if kind is MULTI else 0)
    assert spec.judged_for == BASE.digest
    assert spec.warnings == ()
    assert (spec.template, spec.chat, spec.scale_by_sqrt_hidden, spec.probe) == (None, "start", False, None)


def test_a_config_of_the_least_keys_is_enough(tmp_path: Path) -> None:
    make_folder(tmp_path, KV)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": ROWS}))
    spec = judge_folder(tmp_path, BASE)
    assert spec.kind is KV
    assert "task_type is null" in spec.warnings[0]


def test_what_changes_nothing_is_a_warning(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "acme/other", "future_key": 1, "auto_mapping": {"parent_library": "os"}}
    spec = judge_folder(make_folder(tmp_path, config=config), BASE)
    unknown, base = spec.warnings
    assert "future_key" in unknown
    assert "'acme/other'" in base
    assert "'tiny'" in base


def test_a_hub_name_that_ends_in_the_bases_is_no_warning(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "acme/TINY"}
    assert judge_folder(make_folder(tmp_path, config=config), BASE).warnings == ()


def test_the_sidecar_becomes_the_spec(tmp_path: Path) -> None:
    sidecar = {
        "template": "{bos}{v:0-3}Review: {text} by {who}{v:4}",
        "fields": {"who": {"required": False}, "text": {"max_tokens": 30, "truncate": "left"}},
        "chat": "before_generation",
        "tasks": {"sentiment": 0, "topic": 2},
        "embed_scale": "as_is",
        "base": {"digest": BASE.digest, "name": "any"},
        "provenance": {"trainer": "peft 0.21.2"},
        "probe": {"input_ids": [1, 2], "greedy": [7, 8, 9]},
    }
    spec = judge_folder(make_folder(tmp_path, MULTI, sidecar=sidecar), BASE)
    assert spec.template is not None
    assert spec.template.source == sidecar["template"]
    assert spec.fields == (FieldRule("text", True, 30, "left"), FieldRule("who", False))
    assert spec.chat == "before_generation"
    assert spec.tasks == (("sentiment", 0), ("topic", 2))
    assert spec.provenance == (("trainer", "peft 0.21.2"),)
    assert spec.probe == ((1, 2), (7, 8, 9))
    assert spec.warnings == ()


def test_a_base_of_the_right_digest_silences_its_name(tmp_path: Path) -> None:
    make_folder(tmp_path, config={"base_model_name_or_path": "x"}, sidecar={"base": {"digest": BASE.digest}})
    assert judge_folder(tmp_path, BASE).warnings == ()


def test_a_base_of_only_another_name_is_a_warning(tmp_path: Path) -> None:
    make_folder(tmp_path, config={"base_model_name_or_path": None}, sidecar={"base": {"name": "x"}})
    assert "names its base model 'x'" in judge_folder(tmp_path, BASE).warnings[0]


@pytest.mark.parametrize(("scale", "scaled"), [("sqrt_hidden", True), ("as_is", False)])
@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_the_first_gemmas_say_how_their_embeddings_are_scaled(
    family: str, scale: str, scaled: bool, tmp_path: Path
) -> None:
    base = replace(BASE, family=family)
    spec = judge_folder(make_folder(tmp_path, sidecar={"embed_scale": scale}), base)
    assert spec.scale_by_sqrt_hidden is scaled


def test_a_gemma_soft_prompt_without_embed_scale_is_refused(tmp_path: Path) -> None:
    base = replace(BASE, family="gemma2")
    with pytest.raises(AdapterRejected, match=r"waybill\.json: a soft prompt for a gemma2 model needs embed_scale"):
        judge_folder(make_folder(tmp_path), base)
    assert judge_folder(make_folder(tmp_path / "kv", KV), base).kind is KV


def test_cards_and_licences_may_come_along_and_a_published_manifest(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for name in ("README.md", "LICENSE", "LICENSE.txt", "LICENSE-data.md"):
        (tmp_path / name).write_text("text, ä")
    assert judge_folder(tmp_path, BASE)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(AdapterRejected, match=r"'manifest\.json' is no file of an adapter"):
        judge_folder(tmp_path, BASE)
    assert judge_folder(tmp_path, BASE, published=True)


@pytest.mark.parametrize("kind", [SOFT, KV, MULTI])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_files_are_taken(kind: AdapterKind, dtype: str, tmp_path: Path) -> None:
    make_folder(tmp_path, kind)
    (tmp_path / TENSORS).write_bytes(safetensors(shapes_of(kind), dtype))
    assert judge_folder(tmp_path, BASE).kind is kind


def test_the_largest_adapter_of_each_kind_fits(tmp_path: Path) -> None:
    for kind in (SOFT, KV):
        make_folder(tmp_path / kind, kind, rows=BASE.context_length - 1)
        assert judge_folder(tmp_path / kind, BASE).num_virtual_tokens == 63


def test_a_long_cpt_fits_its_config(tmp_path: Path) -> None:
    base = replace(BASE, context_length=100_000, vocab_size=50_000)
    ids = {"cpt_token_ids": [49_151] * 4096, "cpt_mask": [1] * 4096, "cpt_tokens_type_mask": [1] * 4096}
    make_folder(tmp_path, AdapterKind.CPT, rows=4096, config=ids)
    indented = json.dumps(json.loads((tmp_path / CONFIG).read_text()), indent=2)
    (tmp_path / CONFIG).write_text(indented)
    assert judge_folder(tmp_path, base).num_virtual_tokens == 4096


@dataclass(frozen=True)
class Case:
    """One fault: how to make it, and the words of its reason."""

    name: str
    make: Make
    reason: str
    error: type[AdapterRejected] = AdapterRejected


def cfg(kind: AdapterKind = SOFT, /, **config: Any) -> Make:
    return lambda folder: make_folder(folder, kind, config=config)


def side(kind: AdapterKind = SOFT, /, **sidecar: Any) -> Make:
    return lambda folder: make_folder(folder, kind, sidecar=sidecar)


def tensors(kind: AdapterKind = SOFT, /, **shapes: tuple[int, ...]) -> Make:
    return lambda folder: make_folder(folder, kind, shapes=shapes_of(kind) | shapes)


def file(name: str, data: bytes) -> Make:
    return lambda folder: (make_folder(folder) / name).write_bytes(data)


def without(name: str) -> Make:
    return lambda folder: (make_folder(folder) / name).unlink()


def link(folder: Path) -> None:
    (make_folder(folder) / TENSORS).rename(folder.parent / "elsewhere")
    (folder / TENSORS).symlink_to(folder.parent / "elsewhere")


def twice(folder: Path) -> None:
    make_folder(folder)
    header = b'{"prompt_embeddings":{"dtype":"F32","shape":[5,12],"data_offsets":[0,240]},'
    header += header[1:-1] + b"}"
    (folder / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(240))


OTHER = "sha256:" + "c" * 64
FAULTS = [
    # Files
    Case("pickle by its name", file("adapter_model.bin", b""), r"may hold a pickle.*safe_serialization=True"),
    Case("checkpoint by its name", file("x.PT", b""), "may hold a pickle"),
    Case("pickle under the right name", file(TENSORS, b"\x80\x04\x95rest of it"), "a Python pickle"),
    Case("checkpoint under the right name", file(TENSORS, b"PK\x03\x04" + bytes(99)), "a PyTorch checkpoint"),
    Case("gzip under the right name", file(TENSORS, b"\x1f\x8b\x08\x00" + bytes(99)), "a gzip archive"),
    Case("other file", file("tokenizer.json", b"{}"), "'tokenizer.json' is no file of an adapter"),
    Case("hidden file", file(".DS_Store", b""), "is no file of an adapter"),
    Case("code", file("modeling.py", b""), "is no file of an adapter"),
    Case("sub-folder", lambda folder: (make_folder(folder) / "README.md").mkdir(), "README.md is not a plain file"),
    Case("symbolic link", link, "adapter_model.safetensors is not a plain file"),
    Case("pipe", lambda folder: os.mkfifo(make_folder(folder) / "LICENSE"), "LICENSE is not a plain file"),
    Case("no tensors", without(TENSORS), "has no adapter_model.safetensors"),
    Case("no config", without(CONFIG), "has no adapter_config.json"),
    Case("binary card", file("README.md", b"\x80\x04\x95"), "README.md is not UTF-8 text"),
    Case("zeros in a licence", file("LICENSE", b"a\0b"), "it holds zero bytes"),
    Case("vast card", file("README.md", b"x" * 1_100_000), "more than the 1,048,576 allowed"),
    # adapter_config.json
    Case("config that is no JSON", file(CONFIG, b"{"), "adapter_config.json: it is not valid JSON"),
    Case("vast config", file(CONFIG, b" " * 300_000), "adapter_config.json: it has 262,145 bytes"),
    Case("LoRA", cfg(peft_type="LORA"), "peft_type 'LORA' is not prompt learning; served are PROMPT_TUNING,"),
    Case("Llama-Adapter", cfg(peft_type="ADAPTION_PROMPT"), "gates an attention of its own"),
    Case("no type", cfg(peft_type=None), "has no peft_type"),
    Case("type of lower case", cfg(peft_type="prompt_tuning"), "is not prompt learning"),
    Case("type that is no text", cfg(peft_type=["PROMPT_TUNING"]), "is not prompt learning"),
    Case("sequence to sequence", cfg(task_type="SEQ_2_SEQ_LM"), "task_type 'SEQ_2_SEQ_LM' is not CAUSAL_LM"),
    Case("classification", cfg(task_type="SEQ_CLS"), "is not CAUSAL_LM"),
    Case("other weights", cfg(modules_to_save=["lm_head"]), "modules_to_save is not empty"),
    Case("no virtual tokens", cfg(num_virtual_tokens=None), "has no num_virtual_tokens"),
    Case("zero virtual tokens", cfg(num_virtual_tokens=0), "num_virtual_tokens is 0; it must lie between 1 and 4096"),
    Case("negative count", cfg(num_virtual_tokens=-5), "must lie between"),
    Case("a billion virtual tokens", cfg(num_virtual_tokens=10**9), "is 1000000000; it must lie between 1 and 4096"),
    Case("count that is true", cfg(num_virtual_tokens=True), "num_virtual_tokens is True, not an integer"),
    Case("count that is a float", cfg(num_virtual_tokens=5.0), "is 5.0, not an integer"),
    Case(
        "wrong count",
        cfg(num_virtual_tokens=4),
        r"shape \[5, 12\], but .* speaks of \[4, …\] \(num_virtual_tokens is 4\)",
    ),
    Case("CPT of another count", cfg(AdapterKind.CPT, cpt_token_ids=[1]), "is 5, but cpt_token_ids lists 1"),
    Case("CPT ids that are no list", cfg(AdapterKind.CPT, cpt_token_ids="x"), "cpt_token_ids is not a list"),
    Case("too many tasks", cfg(MULTI, num_tasks=10**6), "num_tasks is 1000000"),
    Case("no ranks", cfg(MULTI, num_ranks=0), "num_ranks is 0"),
    Case("layers that are text", cfg(num_layers="2"), "num_layers is '2', not an integer"),
    # Tensors
    Case("tensor too many", tensors(more=(1, 1)), "holds a tensor 'more', which a PROMPT_TUNING adapter does not have"),
    Case("classification head", tensors(**{"base_model.score.weight": (2, 12)}), "'base_model.score.weight'"),
    Case("task tensors elsewhere", tensors(prefix_task_cols=(3, 5, 2)), "holds a tensor 'prefix_task_cols'"),
    Case("tensor of another name", lambda f: make_folder(f, shapes={"x": (5, 12)}), "holds a tensor 'x'"),
    Case("no tensor", lambda f: make_folder(f, shapes={}), "has no tensor prompt_embeddings"),
    Case("no task tensors", lambda f: make_folder(f, MULTI, shapes=shapes_of(SOFT)), "has no tensor prefix_task_cols"),
    Case("tensor twice", twice, "the key 'prompt_embeddings' stands twice"),
    Case("flat table", tensors(prompt_embeddings=(60,)), r"shape \[60\], but"),
    Case("deep table", tensors(prompt_embeddings=(1, 5, 12)), r"shape \[1, 5, 12\], but"),
    Case("other tasks", tensors(MULTI, prefix_task_cols=(2, 5, 2)), r"\[2, 5, 2\], but .* \[3, 5, 2\]"),
    Case("other ranks", tensors(MULTI, prefix_task_rows=(3, 1, 12)), r"\[3, 1, 12\], but .* \[3, 2, …\]"),
    Case("tasks of another width", tensors(MULTI, prefix_task_rows=(3, 2, 9)), "differ in their last dimension"),
    # The base model
    Case(
        "other hidden size",
        tensors(prompt_embeddings=(5, 16)),
        "the soft prompt is for hidden size 16; the base model tiny has 12",
        AdapterIncompatible,
    ),
    Case(
        "a soft prompt for more layers",
        cfg(num_layers=30),
        "the adapter is for a model of 30 layers; the base model tiny has 2",
        AdapterIncompatible,
    ),
    Case(
        "a prefix for more layers",
        lambda f: make_folder(f, KV, base=replace(BASE, num_layers=4)),
        "the prefix is for 4 layers × 3 kv heads × 4; the base model tiny has 2 layers × 3 kv heads × 4",
        AdapterIncompatible,
    ),
    Case(
        "a prefix for more kv heads",
        lambda f: make_folder(f, KV, base=replace(BASE, num_kv_heads=9)),
        "the prefix is for 2 layers × 9 kv heads × 4; the base model tiny has 2 layers × 3 kv heads × 4",
        AdapterIncompatible,
    ),
    Case(
        "a prefix of as many columns, cut otherwise",
        lambda f: make_folder(f, KV, base=replace(BASE, num_kv_heads=6, head_dim=2)),
        "2 layers × 6 kv heads × 2; the base model tiny has 2 layers × 3 kv heads × 4",
        AdapterIncompatible,
    ),
    Case(
        "a prefix that is not of its config's size",
        tensors(KV, prompt_embeddings=(5, 50)),
        "by adapter_config.json, yet has 50 columns and not 48",
        AdapterIncompatible,
    ),
    Case(
        "a prefix that does not say its size",
        lambda f: make_folder(
            f, KV, config={"num_layers": None, "token_dim": None}, shapes={"prompt_embeddings": (5, 50)}
        ),
        r"the prefix is for 50 columns \(2 × layers × kv heads × head size\).*48 columns",
        AdapterIncompatible,
    ),
    Case(
        "no room in the context",
        lambda f: make_folder(f, rows=64),
        "has 64 virtual tokens, which leaves nothing of the base model's context of 64",
        AdapterIncompatible,
    ),
    Case(
        "another base's digest",
        side(base={"digest": OTHER, "name": "other"}),
        f"made for the base model 'other' \\({OTHER}\\); this server has tiny",
        AdapterIncompatible,
    ),
    # waybill.json
    Case("sidecar that is no JSON", file(SIDECAR, b"{"), "waybill.json: it is not valid JSON"),
    Case("sidecar without a version", file(SIDECAR, b"{}"), "it has no version"),
    Case("sidecar of another version", side(version=2), "version is 2"),
    Case("version that is true", side(version=True), "version is True, not an integer"),
    Case("unknown key", side(pobe={}), "waybill.json has no key 'pobe'; it has version, template"),
    Case("row twice", side(template="{v:0-4}{text}{v:4}"), "uses row 4 twice"),
    Case("row never", side(template="{v:0-3}{text}"), "never uses row 4"),
    Case("rows out of order", side(template="{v:3-4}{text}{v:0-2}"), "row 0 stands after row 4"),
    Case("prefix with rows", side(KV, template="{v:0-4}{text}"), "leave {v:…} out"),
    Case("template that is no text", side(template=["{text}"]), "template is .*, not text"),
    Case("rule of no field", side(template="{text}", fields={"x": {}}), "fields has 'x', which the template"),
    Case("rules without a template", side(fields={"text": {}}), "fields has 'text', which the template"),
    Case("unknown rule", side(template="{t}", fields={"t": {"max": 1}}), r"fields\.t has no key 'max'"),
    Case("required by a number", side(template="{t}", fields={"t": {"required": 1}}), "not true or false"),
    Case("no tokens at all", side(template="{t}", fields={"t": {"max_tokens": 0}}), "max_tokens is 0"),
    Case("cut where", side(template="{t}", fields={"t": {"max_tokens": 1, "truncate": "x"}}), "one of left, right"),
    Case("cut to what", side(template="{t}", fields={"t": {"truncate": "left"}}), "truncate needs max_tokens"),
    Case("place in a chat", side(chat="middle"), "chat is 'middle'; it is one of start, before_last_user"),
    Case("place of a prefix in a chat", side(KV, chat="before_generation"), "only start is possible"),
    Case("tasks of one task", side(tasks={"a": 0}), "tasks is for MULTITASK_PROMPT_TUNING"),
    Case("task beyond the last", side(MULTI, tasks={"a": 3}), "a is 3; it must lie between 0 and 2"),
    Case("task by two names", side(MULTI, tasks={"a": 1, "b": 1}), "every name has an index of its own"),
    Case("task of no index", side(MULTI, tasks={"a": None}), "every name has an index of its own"),
    Case("task named as a number", side(MULTI, tasks={"1": 1}), "tasks has the name '1'"),
    Case("unknown scale", side(embed_scale="double"), "embed_scale is 'double'; it is one of as_is, sqrt_hidden"),
    Case("scale for a Llama", side(embed_scale="sqrt_hidden"), "a llama model takes as_is"),
    Case("scale for a prefix", side(KV, embed_scale="as_is"), "holds keys and values: leave it out"),
    Case("digest that is none", side(base={"digest": "sha256:1"}), "base.digest is 'sha256:1', not"),
    Case("base of other keys", side(base={"sha": "1"}), "base has no key 'sha'"),
    Case("base that is text", side(base="tiny"), "base is 'tiny', not an object"),
    Case("provenance of numbers", side(provenance={"epochs": 3}), "epochs is 3, not text"),
    Case("provenance without an end", side(provenance={str(i): "" for i in range(33)}), "more than 32"),
    Case("probe without an answer", side(probe={"input_ids": [1]}), "probe.greedy is not a list of 1 to 256"),
    Case("probe outside the vocabulary", side(probe={"input_ids": [100], "greedy": [1]}), "token ids, 0 to 99"),
    Case("probe with a truth", side(probe={"input_ids": [True], "greedy": [1]}), "something else than token ids"),
]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_each_fault_is_refused_for_its_own_reason(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    case.make(folder)
    with pytest.raises(AdapterRejected, match=case.reason) as caught:
        judge_folder(folder, BASE)
    assert type(caught.value) is case.error
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message


def test_more_files_than_an_adapter_has(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for number in range(15):
        (tmp_path / f"LICENSE.{number}").touch()
    with pytest.raises(AdapterRejected, match="has 17 entries, more than 16"):
        judge_folder(tmp_path, BASE)


def test_more_bytes_than_the_largest_adapter(tmp_path: Path) -> None:
    make_folder(tmp_path)
    limits = AdapterLimits(max_virtual_tokens=ROWS)
    assert judge_folder(tmp_path, BASE, limits)
    with (tmp_path / TENSORS).open("ab") as out:
        out.truncate(max_folder_bytes(BASE, limits))
    with pytest.raises(AdapterRejected, match="the largest that fits this base model has"):
        judge_folder(tmp_path, BASE, limits)


def test_the_operators_limit_on_virtual_tokens(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert judge_folder(tmp_path, BASE, AdapterLimits(max_virtual_tokens=5))
    with pytest.raises(AdapterRejected, match="it must lie between 1 and 4"):
        judge_folder(tmp_path, BASE, AdapterLimits(max_virtual_tokens=4))
