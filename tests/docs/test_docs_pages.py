"""Pages are short, their links lead somewhere, their JSON parses, and what they name exists."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.markdown import DOCS, README, ROOT, anchors, code, fences, links, pages, prose, rows

CARDS = sorted(ROOT.glob("adapters_store/public/*/versions/*/README.md"))
OTHER_PAGES = sorted([*ROOT.glob("examples/**/*.md"), *CARDS])


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", [*pages(), *OTHER_PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, pending = {README}, [README]
    while pending:
        page = pending.pop()
        found = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        fresh = {path for path in found if path.suffix == ".md" and path.exists()} - reached
        reached |= fresh
        pending += fresh
    assert set(DOCS.glob("*.md")) <= reached


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_json_parses(page: Path) -> None:
    for fence in fences(page, "json"):
        json.loads(fence.text)


def test_architecture_shows_every_room_and_nothing_else() -> None:
    """Every folder and every top-level module of the package has its line; every path named there exists."""
    package = ROOT / "server"
    python = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    folders = {path.parent for path in python} - {package, package / "engine"}
    top = {path for path in python if path.parent in (package, package / "engine")}
    rooms = {f"{path.relative_to(package)}" for path in top} | {f"{path.relative_to(package)}/" for path in folders}
    text = (DOCS / "architecture.md").read_text()
    table = {name for row in rows(text) for name in code(row[0])}
    assert rooms <= table, f"not in the table: {sorted(rooms - table)}"
    assert table <= rooms, f"gone: {sorted(table - rooms)}"
    for path in re.findall(r"`((?:server|tests|docs|examples|adapters_store)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_dependencies_are_all_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {match[0] for text in declared if (match := re.match(r"[A-Za-z0-9-]+", text))}
    explained = {name.strip() for row in rows(prose(DOCS / "dependencies.md")) for name in row[0].split(",")}
    assert names == explained


def test_constraints_pin_exactly_and_cover_what_is_declared() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert all(re.fullmatch(r"[0-9][0-9.]*(\.post[0-9]+)?", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[^A-Za-z0-9-]", text)[0] for text in declared}
    assert names <= {name.lower().replace("_", "-") for name in pins}


def test_glossary_is_in_order() -> None:
    words = [row[0].strip("*").lower() for row in rows(prose(DOCS / "glossary.md"))]
    assert words == sorted(words)
    assert len(words) == len(set(words))
