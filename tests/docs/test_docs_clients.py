"""The clients' page tells the versions that are installed for the tests, and the errors that were recorded there."""

from __future__ import annotations

import json

from tests.docs.markdown import DOCS, ROOT, code, rows, section

PAGE = DOCS / "clients.md"
RESULTS = json.loads((ROOT / "tests" / "long" / "results" / "clients.json").read_text())
COLUMNS = ("bad value", "unknown adapter", "wrong key", "full", "on the way")
CASES = {
    "openai": ("openai", "", {}),
    "huggingface_hub": ("huggingface_hub", "", {}),
    "lorax": ("lorax", "", {}),
    "text_generation": ("text_generation", "", {}),
    "litellm": ("litellm", "", {"unknown adapter": "unknown model"}),
    "langchain_openai": (
        "langchain",
        "openai ",
        {"unknown adapter": "chat unknown model", "wrong key": "chat wrong key"},
    ),
    "langchain_huggingface": ("langchain", "endpoint ", {}),
}
"""For each row: the client that it was recorded with, what its cases begin with, and cases of other names."""


def test_versions_are_those_installed() -> None:
    tools = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {"openai": tools["openai"]}
    for file in (ROOT / "tests/long/clients/requirements").glob("*.txt"):
        pinned |= dict(line.split("==") for line in file.read_text().splitlines() if "==" in line)
    page = PAGE.read_text().partition("\n## ")[0]
    told = {code(row[0])[0]: row[1] for row in rows(page)}
    assert told == pinned
    assert set(pinned.items()) <= {tried for client in RESULTS.values() for tried in client["versions"].items()}


def test_errors_are_those_recorded() -> None:
    table = {
        code(row[0])[0]: [(code(cell) or [""])[0] for cell in row[1:]] for row in rows(section(PAGE, "What they raise"))
    }
    for name, (client, start, others) in CASES.items():
        recorded = RESULTS[client]["errors"]
        expected = [recorded.get(others.get(case, start + case), "") for case in COLUMNS]
        assert table[name] == expected, name
    assert set(table) == set(CASES)
