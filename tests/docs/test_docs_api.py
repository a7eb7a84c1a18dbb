"""docs/api.md says of routes, fields, replies and errors what the code says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docs.api_reference import MODELS, PAGE, document_of_the_api, written


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return document_of_the_api()


def test_the_page_is_what_the_code_says() -> None:
    page = PAGE.read_text()
    assert written(page) == page, "docs/api.md is behind the code: `make docs` writes its tables again"


def bodies_and_replies(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What each route takes and gives as JSON: the model's name, and the part of the page that tells of it."""
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            yield from ((name, "fields") for name in models_in(content.get("application/json", {})))
            for status in ("200", "201"):
                content = operation["responses"].get(status, {}).get("content", {})
                yield from ((name, "reply") for name in models_in(content.get("application/json", {})))


def models_in(content: Any) -> list[str]:
    """The components that a schema names."""
    return re.findall(r"#/components/schemas/(\w+)", json.dumps(content))


def test_every_body_and_every_reply_has_its_table(document: dict[str, Any]) -> None:
    page = PAGE.read_text()
    lists = {"ModelList": "ModelCard", "AdapterList": "AdapterCard", "VersionList": "VersionCard"}
    told = {(lists.get(name, name), part) for name, part in bodies_and_replies(document)}
    assert {(name, part) for name, part in told if f"<!-- {part} {name}" not in page} == set()


def test_every_model_has_its_table() -> None:
    page = PAGE.read_text()
    named = set(re.findall(r"<!-- (?:fields|reply) (\w+)(?: beside (\w+))?", page))
    assert {name for names in named for name in names if name} == set(MODELS)


def test_every_field_says_what_it_means() -> None:
    tables = re.findall(r"<!-- (fields \w+).*?-->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    silent = [(title, line) for title, table in tables for line in table.splitlines() if line.endswith("|  |")]
    assert silent == []
