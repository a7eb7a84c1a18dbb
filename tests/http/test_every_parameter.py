"""No parameter of any route is without its case: bodies and what stands in them, forms, paths and queries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from server.api.fields import ChatMessage
from server.api.openai.chat import TextPart
from server.api.strict import Strict
from server.api.structure import JsonSchema, ResponseFormat, StructuredOutputs, TgiGrammar
from server.api.tgi.schemas import LoraxFormat
from tests.http import folders, test_generate_parameters, test_tokenize
from tests.http.conftest import Api, MakeApi
from tests.http.openai import test_parameters as openai_parameters
from tests.http.parameters import Heard, Neutral, Refused, Table
from tests.http.tgi import test_parameters as tgi_parameters

INTEGER = {"type": "integer"}
STRING = {"type": "string"}
LEAST = {"prompt": "hello", "max_tokens": 6, "seed": 1}


def in_generate(field: str) -> Any:
    """Puts a part of the body of `/v1/generate` in its place."""
    return lambda part: {**LEAST, field: part}


def in_tgi(field: str) -> Any:
    """Puts one of TGI's parameters in its place."""
    return lambda part: {"inputs": "hello", "parameters": {"max_new_tokens": 6, field: part}}


NESTED = [
    Table(
        "/v1/generate",
        ChatMessage,
        {"role": "user", "content": "hi"},
        {
            "role": (Heard("system", absent="user"), Refused("tool")),
            "content": (Heard("ho", absent="hi"), Refused(["hi"])),
        },
        wrap=lambda message: {"messages": [message], "max_tokens": 6, "seed": 1},
    ),
    Table(
        "/v1/chat/completions",
        TextPart,
        {"type": "text", "text": "hi"},
        {"type": (Refused("image_url"),), "text": (Heard("ho", absent="hi"), Refused(5))},
        wrap=lambda part: {
            "messages": [{"role": "user", "content": [part]}],
            "max_tokens": 6,
            "seed": 1,
            "temperature": 0,
        },
    ),
    Table(
        "/v1/generate",
        ResponseFormat,
        {"type": "json_object"},
        {
            "type": (Heard("text", absent="json_object", shows="engine"), Refused("xml")),
            "json_schema": (
                Heard(
                    {"name": "a", "schema": INTEGER},
                    {"type": "json_schema"},
                    absent={"name": "a", "schema": STRING},
                    shows="engine",
                ),
                Refused({"name": "a", "schema": INTEGER}),
            ),
            "value": (Heard(INTEGER, shows="engine"), Refused(5)),
            "schema": (Heard(INTEGER, shows="engine"), Refused(5)),
        },
        wrap=in_generate("response_format"),
    ),
    Table(
        "/v1/generate",
        JsonSchema,
        {"name": "a", "schema": INTEGER},
        {
            "name": (Refused("a b"), Refused("")),
            "schema": (Heard(STRING, absent=INTEGER, shows="engine"), Refused(5)),
            "strict": (Neutral(False), Neutral(True), Refused("yes")),
            "description": (Neutral("An age."), Refused("x" * 1025)),
        },
        wrap=lambda schema: {**LEAST, "response_format": {"type": "json_schema", "json_schema": schema}},
    ),
    Table(
        "/v1/generate",
        StructuredOutputs,
        {"regex": "[ab]+"},
        {
            "json": (Heard(INTEGER, {"regex": None}, absent=STRING, shows="engine"), Refused(5)),
            "regex": (Heard("[cd]+", absent="[ab]+", shows="engine"), Refused(5)),
            "choice": (Heard(["a", "b"], {"regex": None}, absent=["c"], shows="engine"), Refused([5])),
            "grammar": (
                Heard('root ::= "a"', {"regex": None}, absent='root ::= "b"', shows="engine"),
                Refused(5),
            ),
            "json_object": (Heard(True, {"regex": None}, absent=None, shows="engine"), Refused(False)),
        },
        wrap=lambda part: {**LEAST, "structured_outputs": part} if part else LEAST,
    ),
    Table(
        "/generate",
        TgiGrammar,
        {"type": "json", "value": INTEGER},
        {
            "type": (Refused("regex", status=422, names="value"), Refused("xml", status=422)),
            "value": (Heard(STRING, absent=INTEGER, shows="engine"), Refused(5, status=422)),
        },
        wrap=in_tgi("grammar"),
        fault=tgi_parameters.PARAMETERS.fault,
    ),
    Table(
        "/generate",
        LoraxFormat,
        {"type": "json_object"},
        {
            "type": (Heard("text", absent="json_object", shows="engine"), Refused("xml", status=422)),
            "schema": (Heard(INTEGER, shows="engine"), Refused(5, status=422)),
        },
        wrap=in_tgi("response_format"),
        fault=tgi_parameters.PARAMETERS.fault,
    ),
]

TABLES = [
    test_generate_parameters.TABLE,
    *openai_parameters.TABLES.values(),
    test_tokenize.TOKENIZE,
    test_tokenize.DETOKENIZE,
    tgi_parameters.PARAMETERS,
    tgi_parameters.BODY,
    *NESTED,
]


def every_strict(model: type[Strict] = Strict) -> Iterator[str]:
    """Names of all models of bodies and of what stands in them."""
    for known in model.__subclasses__():
        yield known.__name__
        yield from every_strict(known)


def test_every_model_of_a_body_has_a_table() -> None:
    shared = {"GenerationFields", "OpenAIFields"}
    of_adapters = {"AliasTarget", "Description", "ResidencyChange"}  # these have tests/http/test_life_of_an_adapter.py
    assert set(every_strict()) - shared - of_adapters == {table.model.__name__ for table in TABLES}


@pytest.mark.parametrize("table", NESTED, ids=lambda table: table.model.__name__)
def test_every_field_has_its_case(table: Table) -> None:
    assert table.unproved() == set()


@pytest.mark.parametrize(
    ("table", "name", "case"),
    [
        pytest.param(table, *case.values, id=f"{table.model.__name__}-{case.id}")
        for table in NESTED
        for case in table.parameters()
    ],
)
async def test_is_heard_or_refused(make_api: MakeApi, table: Table, name: str, case: Any) -> None:
    await table.check(make_api, name, case)


async def test_no_route_takes_a_query_that_it_does_not_have(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    open_routes = {"/health", "/health/live", "/health/ready", "/ping", "/metrics"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            has = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"}
            assert has <= ({"limit", "after", "before", "tenant", "kind", "tag", "resident", "version"}), path
            assert not has or path.startswith("/v1/adapters")
            if path in open_routes:
                continue
            answer = await api.client.request(method, re.sub("{[a-z]+}", "a", path) + "?surplus=5")
            assert answer.status_code in (400, 422), path
            assert "surplus" in json.dumps(answer.json()), path


async def test_a_path_says_which_one(api: Api) -> None:
    await api.publish("one", folders.soft_prompt(3))
    await api.publish("two", folders.soft_prompt(5))
    for path in ("/v1/adapters", "/v1/models"):
        rows = [(await api.client.get(f"{path}/{name}")).json()["num_virtual_tokens"] for name in ("one", "two")]
        assert rows == [3, 5]
        assert (await api.client.get(f"{path}/three")).status_code == 404
    assert (await api.client.delete("/v1/adapters/one")).status_code == 204
    assert [(await api.client.get(f"/v1/adapters/{name}")).status_code for name in ("one", "two")] == [404, 200]


async def test_every_part_of_the_form_is_heard_and_no_other_is_taken(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    body = document["paths"]["/v1/adapters"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"name", "files", "alias", "dry_run"}
    checked = await api.publish("mine", folders.soft_prompt(3), dry_run="true")
    kept = await api.publish("mine", folders.soft_prompt(4), dry_run="false")
    other = await api.publish("other", folders.soft_prompt(4))
    assert [answer.status_code for answer in (checked, kept, other)] == [200, 201, 201]
    assert [answer.json()["num_virtual_tokens"] for answer in (checked, kept, other)] == [3, 4, 4]
    assert re.search("/mine/versions/1$", kept.headers["location"])
    assert (await api.publish("mine", folders.soft_prompt(4), dry_run="maybe")).status_code == 400
    assert (await api.publish("mine", folders.soft_prompt(4), alias="prod")).status_code == 200
    assert (await api.generate(prompt="hi", adapter="mine@prod", max_tokens=1)).status_code == 200
    assert (await api.publish("mine", folders.soft_prompt(4), alias="v3")).status_code == 400
    assert (await api.publish("mine", folders.soft_prompt(4), colour="red")).status_code == 400
