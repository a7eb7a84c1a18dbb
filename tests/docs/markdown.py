"""What the documentation tests read from Markdown: pages, links, headings, fenced code, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Fence:
    """One fenced block of a page."""

    page: Path
    language: str
    text: str


def pages() -> list[Path]:
    """The README and every page of docs/."""
    return [README, *sorted(DOCS.glob("*.md"))]


def fences(page: Path, *languages: str) -> Iterator[Fence]:
    """The page's fenced blocks in one of these languages."""
    for language, text in _FENCE.findall(page.read_text()):
        if language in languages:
            yield Fence(page, language, text)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Targets of the page's links."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that the page's headings get, as GitHub forms them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(page)))
    return {heading.strip().replace(" ", "-") for heading in plain}


def section(page: Path, heading: str) -> str:
    """The text under one heading, up to the next of the same or a higher level."""
    text = prose(page)
    start = re.search(rf"^(#+) +{re.escape(heading)}$", text, re.MULTILINE)
    if start is None:
        raise AssertionError(f"{page.name} has no heading {heading!r}")
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in the text, headers and rulers left out."""
    lines = [line.strip() for line in text.splitlines()]
    table = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in table]
    rulers = {index for index, row in enumerate(cells) if all(set(cell) <= set("-: ") for cell in row)}
    headers = {index - 1 for index in rulers}
    return [row for index, row in enumerate(cells) if index not in rulers | headers]


def code(text: str) -> list[str]:
    """Everything in backticks, in order."""
    return _CODE.findall(text)
