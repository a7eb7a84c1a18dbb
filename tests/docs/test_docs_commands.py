"""Commands on the pages: every curl line meets a route with a body that it takes; the files it names are there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.api.openai.chat import ChatRequest
from server.api.openai.completions import CompletionRequest
from server.api.schemas import GenerateRequest
from server.api.tgi.schemas import TgiRequest
from server.formats.names import check_name
from tests.docs.commands import commands, parse
from tests.docs.markdown import DOCS, README, ROOT, code, pages, prose, rows

ROUTES = {
    tuple(name.split(" ", 1)) for row in rows(prose(DOCS / "api.md")) for name in code(row[0]) if name.count(" ") == 1
}

BODIES = {
    "/v1/generate": GenerateRequest,
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/generate": TgiRequest,
}

CURLS = [(page, line) for page in pages() for line in commands(page) if line.startswith("curl ")]


def test_readme_shows_the_three_kinds_an_upload_and_the_list() -> None:
    curls = [parse(line) for page, line in CURLS if page == README]
    asked = {json.loads(curl.body).get("adapter") for curl in curls if curl.body}
    assert {None, "pirate", "sms-spam", "question-type", "deb-summary"} <= asked
    assert {("POST", "/v1/adapters"), ("GET", "/v1/adapters")} <= {(curl.method, curl.path) for curl in curls}


@pytest.mark.parametrize(("page", "line"), CURLS, ids=lambda value: getattr(value, "name", value)[:60])
def test_curl(page: Path, line: str) -> None:
    curl = parse(line)
    split = urlsplit(curl.url)
    assert f"{split.scheme}://{split.netloc}" == "http://127.0.0.1:8000"
    assert any(
        method == curl.method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), curl.path) for method, path in ROUTES
    ), f"{page.name}: no route for {curl.method} {curl.path}"
    if curl.body is not None:
        assert "content-type: application/json" in curl.headers
        BODIES[curl.path].model_validate_json(curl.body)
    if curl.form:
        check_name(curl.form["name"][0])
        for value in curl.form["files"]:
            assert value.startswith("@")
            assert (ROOT / value[1:]).is_file(), value


def test_adapters_that_the_pages_ask_are_shipped_or_made_there() -> None:
    shipped = {folder.name for folder in (ROOT / "adapters_store/public").iterdir()}
    for page in pages():
        curls = [parse(line) for line in commands(page) if line.startswith("curl ")]
        made = {curl.form["name"][0] for curl in curls if curl.form}
        asked = {json.loads(curl.body).get("adapter") for curl in curls if curl.body} - {None}
        assert asked <= shipped | made, page.name


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {words[1] for page in pages() for line in commands(page) if (words := line.split())[0] == "make"}
    assert used <= targets
