"""`python -m benchmarks.publish RESULT`: writes a committed result's figures into the README and the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu import table as gpu
from benchmarks.gpu.predict import predicted
from benchmarks.plot import svg
from benchmarks.results import read_result
from benchmarks.servers import ROOT
from benchmarks.table import full, short


def main(path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Write what `pages` returns."""
    for target, text in pages(path, ROOT).items():
        target.write_text(text)
        print(target.relative_to(ROOT))


def pages(path: Path, root: Path) -> dict[Path, str]:
    """Return the text that each file should have with the result of `path`, of a CPU or of a GPU.

    Raises ValueError where it has no place.
    """
    if gpu.is_gpu_result(path):
        return _gpu_pages(path, root)
    result = read_result(path)
    source = path.resolve().relative_to(root.resolve())
    link = f"`{source}`"
    readme, benchmarks = root / "README.md", root / "docs" / "benchmarks.md"
    return {
        root / "docs" / "benchmarks.svg": svg(result),
        readme: _filled(readme.read_text(), readme, "benchmark", short(result)),
        benchmarks: _filled(benchmarks.read_text(), benchmarks, "benchmark", f"From {link}. {full(result)}"),
    }


def _gpu_pages(path: Path, root: Path) -> dict[Path, str]:
    result = gpu.read_gpu_result(path)
    source = path.resolve().relative_to(root.resolve())
    readme, performance = root / "README.md", root / "docs" / "performance.md"
    return {
        readme: _filled(readme.read_text(), readme, "gpu", gpu.short(result)),
        performance: _filled(
            _filled(performance.read_text(), performance, "predicted", predicted()),
            performance,
            "gpu",
            f"From `{source}`. {gpu.full(result)}",
        ),
    }


def newest(root: Path) -> Path:
    """Return the newest committed result."""
    return max((root / "benchmarks" / "results").glob("*.json"))


def _filled(before: str, page: Path, name: str, text: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    between = re.compile(f"{begin}.*?{end}", re.DOTALL)
    filled, count = between.subn(lambda _: f"{begin}\n{text}\n{end}", before)
    if count != 1:
        raise ValueError(f"{page} has {count} places for a {name} result, not one")
    return filled


if __name__ == "__main__":
    typer.run(main)
