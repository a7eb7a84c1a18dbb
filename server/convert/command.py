"""`waybill convert`: another tool's file into a folder as PEFT saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.convert.isolation import convert_file
from server.convert.sources import SourceKind
from server.errors import WaybillError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="adapter_model.bin, decoder.pt, cache_last.pt or a soft prompt's zip; or the folder it is in."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The folder to make; it must not exist yet.")],
    kind: Annotated[
        SourceKind | None,
        typer.Option(
            metavar="TOOL",
            help=f"Which tool wrote the file, where its name does not say: {', '.join(SourceKind)}.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Turn another tool's adapter into a folder that can be published.

    Works offline. The file is read by a process of its own that can open nothing else, and nothing in it is ever run.
    """
    try:
        made = convert_file(source, target, kind)
    except WaybillError as error:
        err.print(f"waybill: {error.message}", markup=False)
        raise SystemExit(2) from error
    if as_json:
        out.print_json(
            data={
                "folder": str(target),
                "source": str(made.source.file),
                "source_kind": made.source.kind,
                "kind": made.kind,
                "num_virtual_tokens": made.num_virtual_tokens,
                "shape": made.shape,
                "dtype": made.dtype,
                "notes": made.notes,
            }
        )
        return
    what = f"{made.kind.upper()}, {made.num_virtual_tokens} virtual tokens, {list(made.shape)} {made.dtype}"
    out.print(f"{target}: {what}", markup=False)
    for note in made.notes:
        err.print(f"note: {note}", markup=False)
