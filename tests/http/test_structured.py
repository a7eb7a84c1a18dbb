"""`response_format` and `structured_outputs`: each form reaches the engine as a grammar of what it means."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.api.structure import TgiGrammar
from server.service.structure import engine_grammar
from tests.grammars.small import accepts
from tests.http.conftest import Api
from tests.http.test_bad_requests import refused

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
NAMED = {"name": "answer", "schema": SCHEMA}


async def grammar_of(api: Api, **body: Any) -> str | None:
    response = await api.generate(prompt="x", max_tokens=1, **body)
    assert response.status_code == 200, response.text
    return api.engine.submitted[-1].params.grammar


@pytest.mark.parametrize(
    ("body", "yes", "no"),
    [
        ({"response_format": {"type": "json_object"}}, '{"b": [1]}', "[1]"),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, '{"a": 12}', '{"a": "12"}'),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED | {"strict": False}}}, '{"a":1}', '{"b":1}'),
        ({"structured_outputs": {"json": SCHEMA}}, '{"a": 12}', "{}"),
        ({"structured_outputs": {"json": '{"type": "integer"}'}}, "12", '"12"'),
        ({"structured_outputs": {"json_object": True}}, "{}", "1"),
        ({"structured_outputs": {"regex": "[a-c]{2}", "json": None}}, "ab", "ad"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "maybe"),
        ({"structured_outputs": {"grammar": 'root ::= "a" root | "b"'}}, "aab", "aac"),
        ({"structured_outputs": {"grammar": 'start: "a" start | "b"'}}, "aab", "aac"),
    ],
)
async def test_each_form_means_its_texts(api: Api, body: dict[str, Any], yes: str, no: str) -> None:
    grammar = await grammar_of(api, **body)
    assert grammar is not None
    assert accepts(grammar, yes)
    assert not accepts(grammar, no)


@pytest.mark.parametrize(
    "body", [{}, {"response_format": {"type": "text"}}, {"response_format": None, "structured_outputs": None}]
)
async def test_without_a_structure_there_is_no_grammar(api: Api, body: dict[str, Any]) -> None:
    assert await grammar_of(api, **body) is None


async def test_every_choice_of_every_prompt_has_the_grammar(api: Api) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 1, "structured_outputs": {"choice": ["yes", "no"]}}
    assert (await api.generate(**body)).status_code == 200
    grammars = [stream.params.grammar for stream in api.engine.submitted]
    assert len(grammars) == 4
    assert len(set(grammars)) == 1
    assert grammars[0] is not None


CHOICE = {"choice": ["yes", "no"]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "scheme": {}}}, "response_format.scheme"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "json_schema": NAMED}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"whitespace_pattern": " ", "regex": "a"}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"json": {"x-guidance": {}}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"minimum": float("1e999")}}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar"),
        ({"structured_outputs": CHOICE, "response_format": {"type": "json_object"}}, None),
        ({"structured_outputs": CHOICE, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": CHOICE, "min_tokens": 1}, "min_tokens"),
        ({"structured_outputs": CHOICE, "stop_token_ids": [5]}, "stop_token_ids"),
    ],
)
async def test_what_is_wrong_is_named_and_reaches_no_engine(api: Api, body: dict[str, Any], param: str | None) -> None:
    content = {"prompt": "x", **body}
    if body == {"structured_outputs": {"json": {"minimum": float("inf")}}}:  # which httpx does not write as JSON
        text = '{"prompt": "x", "structured_outputs": {"json": {"minimum": 1e999}}}'
        response = await api.client.post("/v1/generate", content=text, headers={"Content-Type": "application/json"})
    else:
        response = await api.client.post("/v1/generate", json=content)
    refused(response, 400, "invalid_request", param)
    assert api.engine.submitted == []


async def test_text_format_may_stand_beside_structured_outputs(api: Api) -> None:
    grammar = await grammar_of(api, response_format={"type": "text"}, structured_outputs=CHOICE)
    assert grammar is not None
    assert accepts(grammar, "yes")


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ({"type": "regex", "value": "[0-9]{2}"}, "12", "1a"),
        ({"type": "json", "value": SCHEMA}, '{"a": 1}', "{}"),
        ({"type": "json_object", "value": '{"type": "integer"}'}, "1", "{}"),
        ({"type": "json_schema", "value": NAMED}, '{"a": 1}', "{}"),
        # As its examples have it: no type, and an object is meant.
        ({"type": "json", "value": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}, '{"a": 1}', "1"),
    ],
)
def test_tgi_grammars(grammar: dict[str, Any], yes: str, no: str) -> None:
    written = engine_grammar(TgiGrammar.model_validate(grammar).structure())
    assert accepts(written, yes)
    assert not accepts(written, no)


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "regex", "value": {}},
        {"type": "json_schema", "value": {"name": "a"}},
        {"type": "json_schema", "value": {"schema": {}, "strict": True}},
        {"type": "json_schema", "value": "{}"},
        {"type": "lark", "value": "start: A"},
        {"type": "json"},
    ],
)
def test_tgi_grammars_that_are_refused(grammar: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TgiGrammar.model_validate(grammar)
