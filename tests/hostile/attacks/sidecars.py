"""`waybill.json`: templates, fields, tasks, and the probe that the server runs."""

from __future__ import annotations

import json
from typing import Any

from tests.hostile.uploads import SIDECAR, Attacks, Upload, right, send

ATTACKS = Attacks()
KV, MULTITASK = "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"


def says(kind: str = "PROMPT_TUNING", /, rows: int = 4, **sidecar: Any) -> Upload:
    """A right adapter with this in its sidecar."""
    return send({**right(kind, rows), SIDECAR: json.dumps({"version": 1} | sidecar).encode()})


def raw(data: bytes) -> Upload:
    """A right adapter with these bytes as its sidecar."""
    return send({**right(), SIDECAR: data})


@ATTACKS.bad("waybill.json: it is not valid JSON")
def sidecar_of_nothing() -> Upload:
    return raw(b"")


@ATTACKS.bad("waybill.json: it has 65,537 bytes, more than the 65,536 allowed")
def sidecar_without_an_end() -> Upload:
    return raw(b" " * 2**20)


@ATTACKS.bad("waybill.json: it has no version")
def sidecar_without_a_version() -> Upload:
    return raw(b"{}")


@ATTACKS.bad("version is 2; it must lie between 1 and 1")
def sidecar_of_a_later_version() -> Upload:
    return says(version=2)


@ATTACKS.bad("waybill.json has no key '__proto__'")
def sidecar_with_an_unknown_key() -> Upload:
    return says(__proto__={"admin": True})


@ATTACKS.bad("template is ['{text}'], not text")
def template_that_is_no_text() -> Upload:
    return says(template=["{text}"])


@ATTACKS.bad("marker 'text.__class__.__mro__' is not bos")
def template_that_reaches_into_an_object() -> Upload:
    return says(template="{text.__class__.__mro__}")


@ATTACKS.bad("marker 'text!r:>999999999' is not bos")
def template_with_a_format_that_swells() -> Upload:
    return says(template="{text!r:>999999999}")


@ATTACKS.bad('marker "%', "is not bos")
def template_that_is_code() -> Upload:
    return says(template="{%' or '1'='1%}{text}")


@ATTACKS.bad("the template has a lone '}' at character 6")
def template_with_a_lone_brace() -> Upload:
    return says(template="{text}}")


@ATTACKS.bad("the template names row 999999999, but the table has 4 rows")
def template_with_a_row_beyond_the_table() -> Upload:
    return says(template="{v:0-999999999}{text}")


@ATTACKS.bad("{v:99999999999999999999} names no rows")
def template_with_a_row_beyond_64_bits() -> Upload:
    return says(template="{v:99999999999999999999}{text}")


@ATTACKS.bad("{v:3-0} runs backwards")
def template_with_rows_backwards() -> Upload:
    return says(template="{v:3-0}{text}")


@ATTACKS.bad("the template uses row 0 twice")
def template_of_ten_thousand_times_the_same_rows() -> Upload:
    return says(template="{v:0-3}" * 8000 + "{text}")


@ATTACKS.bad("row 0 stands after row 3")
def template_with_rows_out_of_order() -> Upload:
    return says(template="{v:2-3}{text}{v:0-1}")


@ATTACKS.bad("the template never uses row 3")
def template_that_forgets_a_row() -> Upload:
    return says(template="{v:0-2}{text}")


@ATTACKS.bad("the template has no field")
def template_without_a_field() -> Upload:
    return says(template="Say yes.")


@ATTACKS.bad("the template places virtual tokens, but a PREFIX_TUNING adapter holds keys and values")
def template_that_places_the_rows_of_a_prefix() -> Upload:
    return says(KV, template="{v:0-3}{text}")


@ATTACKS.bad("marker 'aaaa", "is not bos")
def template_with_a_field_of_sixty_thousand_characters() -> Upload:
    return says(template="{" + "a" * 60_000 + "}")


@ATTACKS.bad("the template has a lone '{' at character 0")
def template_of_sixty_thousand_open_braces() -> Upload:
    return says(template="{" + " {" * 30_000)


@ATTACKS.bad("fields has 'other', which the template does not use")
def rule_for_a_field_that_is_not_there() -> Upload:
    return says(template="{text}", fields={"other": {}})


@ATTACKS.bad("fields.text has no key 'default'")
def rule_of_an_unknown_kind() -> Upload:
    return says(template="{text}", fields={"text": {"default": "x"}})


@ATTACKS.bad("max_tokens is 1000000000; it must lie between 1 and 1024")
def rule_of_a_billion_tokens() -> Upload:
    return says(template="{text}", fields={"text": {"max_tokens": 10**9}})


@ATTACKS.bad("fields.text.truncate needs max_tokens")
def rule_that_cuts_to_nothing() -> Upload:
    return says(template="{text}", fields={"text": {"truncate": "left"}})


@ATTACKS.bad("fields.text.required is 'no', not true or false")
def rule_that_is_neither_true_nor_false() -> Upload:
    return says(template="{text}", fields={"text": {"required": "no"}})


@ATTACKS.bad("chat is 'before_system'; it is one of start")
def place_in_the_chat_that_is_not_there() -> Upload:
    return says(chat="before_system")


@ATTACKS.bad("chat is ['start']; it is one of start")
def place_in_the_chat_that_is_a_list() -> Upload:
    return says(chat=["start"])


@ATTACKS.bad("chat is before_generation, but keys and values stand before everything")
def prefix_in_the_middle_of_a_chat() -> Upload:
    return says(KV, chat="before_generation")


@ATTACKS.bad("tasks is for MULTITASK_PROMPT_TUNING, and this adapter is PROMPT_TUNING")
def tasks_of_a_soft_prompt() -> Upload:
    return says(tasks={"a": 0})


@ATTACKS.bad("b is 0: every name has an index of its own")
def two_tasks_of_one_index() -> Upload:
    return says(MULTITASK, tasks={"a": 0, "b": 0})


@ATTACKS.bad("a is -1; it must lie between 0 and 1")
def task_before_the_first() -> Upload:
    return says(MULTITASK, tasks={"a": -1})


@ATTACKS.bad("tasks has the name '1'")
def task_whose_name_is_another_tasks_index() -> Upload:
    return says(MULTITASK, tasks={"1": 0})


@ATTACKS.bad("embed_scale is 'double'; it is one of as_is, sqrt_hidden")
def scale_that_is_not_known() -> Upload:
    return says(embed_scale="double")


@ATTACKS.bad("embed_scale sqrt_hidden is for gemma and gemma2; a llama model takes as_is")
def scale_of_another_family() -> Upload:
    return says(embed_scale="sqrt_hidden")


@ATTACKS.other_base("the adapter was made for the base model 'other' (sha256:ccc", "this server has bytes (sha256:")
def digest_of_another_base() -> Upload:
    return says(base={"name": "other", "digest": f"sha256:{'c' * 64}"})


@ATTACKS.bad("base.digest is 'sha256:*', not sha256: and 64 hex digits")
def digest_that_fits_every_base() -> Upload:
    return says(base={"digest": "sha256:*"})


@ATTACKS.bad("more than the 65,536 allowed")
def provenance_without_an_end() -> Upload:
    return says(provenance={str(number): "" for number in range(9000)})


@ATTACKS.bad("trainer is {}, not text")
def provenance_that_is_no_text() -> Upload:
    return says(provenance={"trainer": {}})


@ATTACKS.bad("probe is [1], not an object")
def probe_that_is_a_list() -> Upload:
    return says(probe=[1])


@ATTACKS.bad("probe has no key 'max_tokens'")
def probe_with_parameters() -> Upload:
    return says(probe={"input_ids": [1], "greedy": [1], "max_tokens": 10**9})


@ATTACKS.bad("probe.greedy is not a list of 1 to 256 token ids")
def probe_without_an_answer() -> Upload:
    return says(probe={"input_ids": [1]})


@ATTACKS.bad("probe.input_ids is not a list of 1 to 256 token ids")
def probe_without_an_end() -> Upload:
    return says(probe={"input_ids": [1] * 10_000, "greedy": [1]})


@ATTACKS.bad("probe.input_ids holds something else than token ids, 0 to 257")
def probe_of_virtual_tokens() -> Upload:
    return says(probe={"input_ids": [258], "greedy": [1]})


@ATTACKS.bad("probe.input_ids holds something else than token ids, 0 to 257")
def probe_of_negative_tokens() -> Upload:
    return says(probe={"input_ids": [-1], "greedy": [1]})


@ATTACKS.bad("probe.greedy holds something else than token ids, 0 to 257")
def probe_answered_by_a_truth() -> Upload:
    return says(probe={"input_ids": [1], "greedy": [True]})


@ATTACKS.bad("the adapter's probe should be followed by [1, 2, 3] and is by")
def probe_that_comes_out_otherwise() -> Upload:
    return says(probe={"input_ids": [1], "greedy": [1, 2, 3]})


@ATTACKS.bad("the adapter's probe does not fit the 1024 tokens of a sequence here")
def probe_longer_than_a_sequence() -> Upload:
    return says(rows=700, probe={"input_ids": [1] * 256, "greedy": [1] * 256})
