"""`adapter_config.json`: as JSON, and in what it says."""

from __future__ import annotations

from typing import Any

from tests.hostile.uploads import CONFIG, TENSORS, Attacks, Upload, config_of, dump, right, send, table_of
from tests.http import folders

ATTACKS = Attacks()
JSON = "adapter_config.json: it is not valid JSON"


def raw(data: bytes) -> Upload:
    """A right adapter but for its config."""
    return send({**right(), CONFIG: data})


def says(kind: str = "PROMPT_TUNING", /, **changes: Any) -> Upload:
    """A right adapter whose config says this."""
    return send({**right(kind), CONFIG: dump(config_of(kind) | changes)})


@ATTACKS.bad(JSON)
def config_of_nothing() -> Upload:
    return raw(b"")


@ATTACKS.bad("adapter_config.json: it is not a JSON object")
def config_that_is_a_list() -> Upload:
    return raw(b"[1]")


@ATTACKS.bad("nested deeper than 8 levels")
def config_of_a_hundred_thousand_brackets() -> Upload:
    return raw(b'{"auto_mapping":' + b"[" * 100_000)


@ATTACKS.bad("nested deeper than 8 levels")
def config_of_nine_levels() -> Upload:
    return raw(b'{"a":' * 9 + b"1" + b"}" * 9)


@ATTACKS.bad("the key 'peft_type' stands twice")
def config_with_two_types() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "peft_type": "LORA"}')


@ATTACKS.bad("the key 'a' stands twice")
def config_with_a_key_twice_deep_inside() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "x": {"y": [{"a": 1, "\\u0061": 2}]}}')


@ATTACKS.bad("NaN is not a JSON number")
def config_with_nan() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "encoder_dropout": NaN}')


@ATTACKS.bad("-Infinity is not a JSON number")
def config_with_infinity() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "encoder_dropout": -Infinity}')


@ATTACKS.bad("the number '1e999' is too large")
def config_with_a_number_that_overflows() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "encoder_dropout": 1e999}')


@ATTACKS.bad(JSON, "4300 digits")
def config_with_a_number_of_a_hundred_thousand_digits() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "num_ranks": ' + b"9" * 100_000 + b"}")


@ATTACKS.bad("num_virtual_tokens is 9223372036854775808; it must lie between 1 and 768")
def config_with_a_count_beyond_64_bits() -> Upload:
    return says(num_virtual_tokens=2**63)


@ATTACKS.bad("num_virtual_tokens is 1000000000; it must lie between 1 and 768")
def config_with_a_billion_virtual_tokens() -> Upload:
    return says(num_virtual_tokens=10**9)


@ATTACKS.bad("num_virtual_tokens is -4; it must lie between 1 and 768")
def config_with_negative_virtual_tokens() -> Upload:
    return says(num_virtual_tokens=-4)


@ATTACKS.bad("num_virtual_tokens is 0; it must lie between 1 and 768")
def config_without_any_virtual_token() -> Upload:
    return says(num_virtual_tokens=0)


@ATTACKS.bad("num_virtual_tokens is True, not an integer")
def config_with_a_truth_as_count() -> Upload:
    return send({CONFIG: dump(config_of() | {"num_virtual_tokens": True}), TENSORS: table_of(rows=1)})


@ATTACKS.bad("num_virtual_tokens is '4', not an integer")
def config_with_text_as_count() -> Upload:
    return says(num_virtual_tokens="4")


@ATTACKS.bad("num_virtual_tokens is 4.0, not an integer")
def config_with_a_float_as_count() -> Upload:
    return says(num_virtual_tokens=4.0)


@ATTACKS.bad("it has no num_virtual_tokens")
def config_that_leaves_the_count_out() -> Upload:
    return says(num_virtual_tokens=None)


@ATTACKS.bad(JSON, "BOM")
def config_with_a_byte_order_mark() -> Upload:
    return raw(b"\xef\xbb\xbf" + right()[CONFIG])


@ATTACKS.bad("adapter_config.json: it is not UTF-8 text")
def config_in_utf_16() -> Upload:
    return raw(right()[CONFIG].decode().encode("utf-16"))


@ATTACKS.bad("adapter_config.json: it is not UTF-8 text")
def config_with_an_overlong_character() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "revision": "\xc0\xaf"}')


@ATTACKS.bad("half of a surrogate pair")
def config_with_half_a_surrogate_pair() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "revision": "\\ud800"}')


@ATTACKS.bad(JSON, "control character")
def config_with_a_zero_byte_in_its_text() -> Upload:
    return raw(right()[CONFIG][:-1] + b', "revision": "a\0b"}')


@ATTACKS.bad(JSON, "Extra data")
def config_of_two_objects() -> Upload:
    return raw(right()[CONFIG] * 2)


@ATTACKS.bad(JSON, "Expecting property name")
def config_with_a_comment() -> Upload:
    return raw(b"{/* */" + right()[CONFIG][1:])


@ATTACKS.bad("adapter_config.json: it has 262,145 bytes, more than the 262,144 allowed")
def config_of_a_megabyte_of_blanks() -> Upload:
    return raw(right()[CONFIG] + b" " * 2**20)


@ATTACKS.bad("it has no peft_type")
def config_of_no_type() -> Upload:
    return says(peft_type=None)


@ATTACKS.bad("peft_type 'LORA' is not prompt learning; served are PROMPT_TUNING")
def config_of_lora() -> Upload:
    return says(peft_type="LORA", r=8, target_modules=["q_proj"])


@ATTACKS.bad("peft_type ADAPTION_PROMPT gates an attention of its own")
def config_of_a_llama_adapter() -> Upload:
    return says(peft_type="ADAPTION_PROMPT", adapter_len=10)


@ATTACKS.bad("peft_type 'EVIL' is not prompt learning")
def config_of_an_unknown_type() -> Upload:
    return says(peft_type="EVIL")


@ATTACKS.bad("peft_type 'xxxx", "… is not prompt learning")
def config_of_a_type_of_two_hundred_thousand_characters() -> Upload:
    return says(peft_type="x" * 200_000)


@ATTACKS.bad("peft_type {'__class__': 'PROMPT_TUNING'} is not prompt learning")
def config_of_a_type_that_is_an_object() -> Upload:
    return says(peft_type={"__class__": "PROMPT_TUNING"})


@ATTACKS.bad("task_type 'SEQ_2_SEQ_LM' is not CAUSAL_LM")
def config_for_an_encoder_and_decoder() -> Upload:
    return says(task_type="SEQ_2_SEQ_LM", num_transformer_submodules=2)


@ATTACKS.bad("task_type 'SEQ_CLS' is not CAUSAL_LM")
def config_for_classification() -> Upload:
    return says(task_type="SEQ_CLS")


@ATTACKS.bad("modules_to_save is not empty")
def config_that_replaces_the_bases_head() -> Upload:
    return says(modules_to_save=["lm_head"])


@ATTACKS.bad("num_virtual_tokens is 2")
def config_of_fewer_rows_than_the_table() -> Upload:
    return says(num_virtual_tokens=2)


@ATTACKS.bad("speaks of [4, …]", "shape [8, 8]")
def table_of_two_submodules() -> Upload:
    changed = config_of() | {"num_transformer_submodules": 2}
    return send({CONFIG: dump(changed), TENSORS: table_of(rows=8)})


@ATTACKS.bad("token_dim is 0; it must lie between 1 and")
def token_dim_of_nothing() -> Upload:
    return says("PREFIX_TUNING", token_dim=0)


@ATTACKS.other_base("the prefix is for 2 layers × 3 kv heads × 4", "the base model bytes has 2 layers × 1 kv heads × 4")
def prefix_for_more_kv_heads() -> Upload:
    return _prefix(layers=2, heads=3, size=4)


@ATTACKS.other_base("the prefix is for 2 layers × 2 kv heads × 2", "the base model bytes has 2 layers × 1 kv heads × 4")
def prefix_of_as_many_columns_cut_otherwise() -> Upload:
    return _prefix(layers=2, heads=2, size=2)


@ATTACKS.other_base("the prefix is for 32 layers × 1 kv heads × 4", "the base model bytes has 2 layers")
def prefix_for_more_layers() -> Upload:
    return _prefix(layers=32, heads=1, size=4)


@ATTACKS.other_base("by adapter_config.json, yet has 16 columns and not 32")
def prefix_of_fewer_columns_than_it_says() -> Upload:
    return says("PREFIX_TUNING", num_layers=4)


def _prefix(layers: int, heads: int, size: int) -> Upload:
    config = config_of("PREFIX_TUNING")
    config |= {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * size}
    table = folders.prefix()[TENSORS]
    if (columns := 2 * layers * heads * size) != folders.KV_COLUMNS:
        from tests.hostile.uploads import ROWS, tensor_file

        table = tensor_file({"prompt_embeddings": (ROWS, columns)})
    return send({CONFIG: dump(config), TENSORS: table})


@ATTACKS.other_base("the soft prompt is for hidden size 4096; the base model bytes has 8")
def soft_prompt_for_a_larger_model() -> Upload:
    return send(folders.soft_prompt(hidden=4096))


@ATTACKS.other_base("the adapter is for a model of 80 layers; the base model bytes has 2")
def soft_prompt_for_a_deeper_model() -> Upload:
    return says(num_layers=80)


@ATTACKS.bad("num_virtual_tokens is 1024; it must lie between 1 and 768")
def adapter_as_long_as_the_context() -> Upload:
    return send(right(rows=1024))


@ATTACKS.bad("num_layers is '2', not an integer")
def layers_as_text() -> Upload:
    return says(num_layers="2")


@ATTACKS.bad("num_attention_heads is False, not an integer")
def heads_as_a_truth() -> Upload:
    return says("PREFIX_TUNING", num_attention_heads=False)


@ATTACKS.bad("num_tasks is 1000000; it must lie between 1 and 1024")
def a_million_tasks() -> Upload:
    return says("MULTITASK_PROMPT_TUNING", num_tasks=10**6)


@ATTACKS.bad("num_ranks is 1073741824; it must lie between 1 and 1024")
def a_billion_ranks() -> Upload:
    return says("MULTITASK_PROMPT_TUNING", num_ranks=2**30)


@ATTACKS.bad("num_virtual_tokens is 4, but cpt_token_ids lists 20000")
def context_tokens_without_an_end() -> Upload:
    return says("CPT", cpt_token_ids=[1] * 20_000)


@ATTACKS.bad("cpt_token_ids is not a list")
def context_tokens_that_are_no_list() -> Upload:
    return says("CPT", cpt_token_ids={"0": 1})


@ATTACKS.bad("base_model_name_or_path is ['../../models'], not text")
def base_name_that_is_a_list() -> Upload:
    return says(base_model_name_or_path=["../../models"])


@ATTACKS.bad("base_model_name_or_path has 100000 characters, more than 4096")
def base_name_of_a_hundred_thousand_characters() -> Upload:
    return says(base_model_name_or_path="../" * 33_333 + "x")


@ATTACKS.bad("peft_version has 65 characters, more than 64")
def version_of_peft_that_is_a_letter() -> Upload:
    return says(peft_version="9" * 65)


@ATTACKS.bad("token_dim is 12, but prompt_embeddings in adapter_model.safetensors has 8 columns")
def soft_prompt_of_another_token_dim_than_it_says() -> Upload:
    return says(token_dim=12)
