"""Reference pages and code say the same: settings, request fields, replies, error codes, metrics, log fields."""

from __future__ import annotations

import json
import re

import pytest

from server.api.record import RequestRecord
from server.api.replies import GenerateReply
from server.api.tgi.replies import TgiReply
from server.core import AdapterKind
from server.metrics import Metrics
from server.settings import Settings
from tests.docs.markdown import DOCS, code, fences, prose, rows, section

API, OPERATIONS, SETTINGS, ADAPTERS = (DOCS / f"{page}.md" for page in ("api", "operations", "settings", "adapters"))


def test_settings() -> None:
    documented = {(code(row[0])[0], code(row[1])[0]): row[2] for row in rows(prose(SETTINGS))}
    fields = Settings.model_fields
    assert set(documented) == {(f"--{name.replace('_', '-')}", f"WAYBILL_{name.upper()}") for name in fields}
    for (_, variable), default in documented.items():
        value = fields[variable.removeprefix("WAYBILL_").lower()].default
        if value is not None:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            assert code(default)[:1] == [shown], variable


def test_no_page_names_a_setting_that_is_not_there() -> None:
    known = {f"WAYBILL_{name.upper()}" for name in Settings.model_fields}
    known |= {"WAYBILL_URL", "WAYBILL_KEY"}  # of the commands that ask a server
    for page in DOCS.glob("*.md"):
        assert set(re.findall(r"WAYBILL_[A-Z_]+[A-Z]", page.read_text())) <= known, page.name


def test_reply_has_the_documented_shape() -> None:
    example = json.loads(next(fence.text for fence in fences(API, "json") if '"usage"' in fence.text))
    reply = GenerateReply.model_validate(example)
    assert set(example) == set(GenerateReply.model_fields)
    assert reply.adapter is not None
    assert set(example["adapter"]) == set(type(reply.adapter).model_fields)
    assert set(example["usage"]) == set(type(reply.usage).model_fields)
    assert set(example["timings"]) == set(type(reply.timings).model_fields)
    optional = {"token_ids", "logprobs", "prompt_logprobs", "labels"}
    choice_fields = set(type(reply.choices[0]).model_fields)
    assert set(example["choices"][0]) == choice_fields - optional
    told = {name for title in ("Reply", "Prompt logprobs", "Labels") for name in code(section(API, title))}
    assert choice_fields <= told | set(example["choices"][0])


def test_tgi_reply_has_the_documented_shape() -> None:
    example = json.loads(next(fence.text for fence in fences(API, "json") if '"generated_text"' in fence.text))
    details = TgiReply.model_validate(example).details
    assert details is not None
    assert set(example["details"]) == set(type(details).model_fields) - {"top_tokens"}
    assert set(example["details"]["tokens"][0]) == set(type(details.tokens[0]).model_fields) - {"alternative_tokens"}


def test_metrics() -> None:
    documented = {code(row[0])[0]: (row[1], code(row[2])) for row in rows(section(OPERATIONS, "Metrics"))}
    there = {}
    for metric in Metrics("m").registry.collect():
        labels = next((sorted(set(sample.labels) - {"le"}) for sample in metric.samples), None)
        there[metric.name] = (metric.type, labels)
    assert set(documented) == set(there)
    for name, (kind, labels) in there.items():
        assert documented[name][0] == kind, name
        # A metric whose labels have no values yet has no samples to tell them.
        assert labels is None or documented[name][1] == labels, name


def test_log_fields() -> None:
    documented = {name for row in rows(section(OPERATIONS, "Logs")) for name in code(row[0])}
    record = RequestRecord(
        "id", "GET", "/", "tenant", "key", "user", 200, "error", "adapter", "sha256:", 1, 1, queue_ms=1.0, ttft_ms=1.0
    )
    assert documented == set(record.line())


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_every_kind_is_described(kind: AdapterKind) -> None:
    served = {name for row in rows(section(ADAPTERS, "Kinds")) for name in code(row[0])}
    assert kind.upper() in served


def test_sidecar_example_and_table_name_every_key() -> None:
    keys = {"version", "template", "fields", "chat", "tasks", "embed_scale", "base", "provenance", "probe"}
    assert {code(row[0])[0] for row in rows(section(ADAPTERS, "waybill.json"))} == keys
    example = json.loads(next(fence.text for fence in fences(ADAPTERS, "json") if '"version"' in fence.text))
    assert set(example) <= keys
