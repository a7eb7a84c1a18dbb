"""`python -m benchmarks.publish RESULT`: writes a committed result's figures into the README and the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.plot import svg
from benchmarks.results import read_result
from benchmarks.servers import ROOT
from benchmarks.table import full, short

BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"
_BETWEEN = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)


def main(path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Write what `pages` returns."""
    for target, text in pages(path, ROOT).items():
        target.write_text(text)
        print(target.relative_to(ROOT))


def pages(path: Path, root: Path) -> dict[Path, str]:
    """Return the text that each file should have with the result of `path`. Raises ValueError where it has no place."""
    result = read_result(path)
    source = path.resolve().relative_to(root.resolve())
    link = f"`{source}`"
    return {
        root / "docs" / "benchmarks.svg": svg(result),
        root / "README.md": _filled(root / "README.md", short(result)),
        root / "docs" / "benchmarks.md": _filled(root / "docs" / "benchmarks.md", f"From {link}. {full(result)}"),
    }


def newest(root: Path) -> Path:
    """Return the newest committed result."""
    return max((root / "benchmarks" / "results").glob("*.json"))


def _filled(page: Path, text: str) -> str:
    filled, count = _BETWEEN.subn(lambda _: f"{BEGIN}\n{text}\n{END}", page.read_text())
    if count != 1:
        raise ValueError(f"{page} has {count} places for a benchmark, not one")
    return filled


if __name__ == "__main__":
    typer.run(main)
