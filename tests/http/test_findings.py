"""A body that is wrong in very many places is as cheap to refuse as one that is wrong in one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from server.api.openai.chat import ChatRequest
from server.api.openai.completions import CompletionRequest
from server.api.schemas import GenerateRequest
from server.api.tgi.schemas import TgiParameters, TgiRequest
from server.api.tokenize import DetokenizeRequest, TokenizeRequest
from tests.http.conftest import Api
from tests.http.test_bad_requests import refused

MANY = 20_000
MOST = 2**14
"""Findings of one body at most: a dozen of each of 1024 messages."""

MODELS: list[type[BaseModel]] = [
    GenerateRequest,
    CompletionRequest,
    ChatRequest,
    TokenizeRequest,
    DetokenizeRequest,
    TgiRequest,
    TgiParameters,
]


def findings(model: type[BaseModel], body: str) -> int:
    """How many places of the body are wrong."""
    try:
        model.model_validate_json(body)
    except ValidationError as error:
        return error.error_count()
    return 0


def shapes() -> Iterator[str]:
    """JSON with very many wrong places, in each shape that any field has."""
    for wrong in (-1, {}):
        yield json.dumps([wrong] * MANY)
        yield json.dumps([[wrong] * MANY] * 2)
        yield json.dumps({f"{number}": wrong for number in range(MANY)})
    yield json.dumps([{"role": "user", "content": [0] * 1024}] * 100)


@pytest.mark.parametrize("model", MODELS)
def test_findings_are_few_whatever_the_field(model: type[BaseModel]) -> None:
    written = list(shapes())
    for name, field in model.model_fields.items():
        for value in written:
            body = f'{{"{field.alias or name}": {value}}}'
            assert findings(model, body) <= MOST, name


@pytest.mark.parametrize("model", MODELS)
def test_unknown_fields_are_told_ten_at_a_time(model: type[BaseModel]) -> None:
    body = json.dumps({"prompt": "x", **{f"unknown{number}": None for number in range(MANY)}})
    assert 10 <= findings(model, body) < 20


async def test_what_is_wrong_first_is_told(api: Api) -> None:
    body = {"prompt": [5] * 100 + [-1] * MANY, "logit_bias": {"1": 1000, "2": 2000}}
    answer = await api.generate(**body)
    refused(answer, 400, "invalid_request", "logit_bias.1")
    assert [line.split(":")[0] for line in answer.json()["error"]["details"]] == ["logit_bias.1", "prompt.100"]
