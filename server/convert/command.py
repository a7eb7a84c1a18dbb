"""`waybill convert`: files of other tools into plain PEFT folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from server.convert.isolation import Conversion, convert_file
from server.convert.sources import SourceKind
from server.errors import WaybillError


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A file (adapter_model.bin, decoder.pt, cache_last.pt, a soft prompt's zip) or its folder."
        ),
    ],
    target_folder: Annotated[Path, typer.Argument(help="The PEFT folder to make; it must not exist yet.")],
    kind: Annotated[
        SourceKind | None, typer.Option(help="Which tool wrote the file, where its name does not say.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made, or the error, as JSON.")] = False,
) -> None:
    """Turn another tool's adapter into a folder that can be published, offline and without running what it holds."""
    try:
        made = convert_file(source, target_folder, kind)
    except WaybillError as error:
        if as_json:
            typer.echo(json.dumps({"error": {"code": error.code, "message": error.message}}))
        else:
            typer.echo(f"waybill: {error.message}", err=True)
        raise typer.Exit(2) from error
    typer.echo(json.dumps(_described(made)) if as_json else _told(made))


def _described(made: Conversion) -> dict[str, object]:
    return {
        "source": str(made.source.file),
        "source_kind": made.source.kind,
        "target": str(made.target),
        "kind": made.kind,
        "num_virtual_tokens": made.num_virtual_tokens,
        "shape": list(made.shape),
        "dtype": made.dtype,
        "notes": list(made.notes),
    }


def _told(made: Conversion) -> str:
    said = (
        f"{made.target}: {made.kind.upper()}, {made.num_virtual_tokens} virtual tokens, {list(made.shape)} {made.dtype}"
    )
    return "\n".join([said, *(f"note: {note}" for note in made.notes)])
