"""Commands on the pages: every curl line meets a route with a body that it takes; the files it names are there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.api.schemas import GenerateRequest
from server.formats.names import check_name
from tests.docs.markdown import DOCS, README, ROOT, code, fences, pages, prose, rows

ROUTES = {
    tuple(name.split(" ", 1)) for row in rows(prose(DOCS / "api.md")) for name in code(row[0]) if name.count(" ") == 1
}


@dataclass(slots=True)
class Curl:
    """One curl command, as far as these pages use it."""

    method: str = ""
    url: str = ""
    body: str | None = None
    form: dict[str, list[str]] = field(default_factory=dict)
    headers: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The URL's path."""
        return urlsplit(self.url).path


def parse(command: str) -> Curl:
    """Read a curl command line; an option that is not known here fails the test."""
    words = iter(shlex.split(command)[1:])
    curl = Curl()
    for word in words:
        match word:
            case "-s" | "-sN" | "-N":
                pass
            case "-X":
                curl.method = next(words)
            case "-H":
                curl.headers.append(next(words))
            case "-d":
                curl.body = next(words)
            case "-F":
                name, _, value = next(words).partition("=")
                curl.form.setdefault(name, []).append(value)
            case _:
                assert not word.startswith("-"), word
                assert not curl.url, f"two URLs in {command}"
                curl.url = word
    curl.method = curl.method or ("POST" if curl.body or curl.form else "GET")
    return curl


def commands(page: Path) -> list[str]:
    """The page's shell commands, continued lines joined."""
    text = "\n".join(fence.text for fence in fences(page, "bash"))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]


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
        GenerateRequest.model_validate_json(curl.body)
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
