"""`waybill adapters …`: adapters of a running server, asked over its API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from server.client.connection import Connection, adapter_path, parse, plain_files
from server.errors import WaybillError
from server.formats.archive import unpack_zip
from server.store.digest import files_digest

MAX_DOWNLOAD = 2**40

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Url = Annotated[str, typer.Option(envvar="WAYBILL_URL", help="The server.")]
Key = Annotated[str | None, typer.Option(envvar="WAYBILL_KEY", help="Your API key, where the server wants one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the server answered.")]
Name = Annotated[str, typer.Argument(help="The adapter: `[tenant/]name`.")]
Ref = Annotated[str, typer.Argument(help="The adapter: `[tenant/]name[@version]`.")]
SERVER = "http://127.0.0.1:8000"


def add_to(cli: typer.Typer) -> None:
    """Add the commands to a command line."""
    for command in (push, pull, ls, show, promote, rollback, pin, rm, verify):
        cli.command()(command)


def push(
    source: Annotated[Path, typer.Argument(help="A folder that PEFT saved, or a zip of one.", exists=True)],
    name: Annotated[str, typer.Argument(help="The adapter's name; it becomes yours.")],
    alias: Annotated[str | None, typer.Option(help="An alias that is to mean it too.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Only let the server judge it.")] = False,
    url: Url = SERVER,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter on a running server."""
    with _explained(), ExitStack() as stack:
        files = plain_files(source) if source.is_dir() else [source]
        texts = {"name": name, "dry_run": str(dry_run).lower()} | ({"alias": alias} if alias else {})
        bar = stack.enter_context(_progress(quiet=as_json))
        task = bar.add_task(name, total=sum(path.stat().st_size for path in files))
        opened = [(path.name, stack.enter_context(bar.open(path, "rb", task_id=task))) for path in files]
        status, card = Connection(url, key).upload(texts, opened)
        bar.stop()
        done = {200: "would be taken" if dry_run else "is there already", 201: "published"}[status]
        version = f"@{card['version']}" if "version" in card else ""
        _tell(card, f"{card['tenant']}/{card['name']}{version} {done}: {card['digest']}", as_json)
        for warning in card.get("warnings", ()):
            err.print(f"warning: {warning}", markup=False)


def pull(
    reference: Ref,
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    url: Url = SERVER,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Download an adapter as a folder that PEFT loads; what came is proved by its digest."""
    with _explained():
        if target.exists():
            raise ValueError(f"{target} is there already")
        asked = parse(reference)
        path = adapter_path(asked.name, "versions", asked.version, "download")
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".waybill-") as work, _progress(quiet=as_json) as bar:
            archive, folder = Path(work) / "adapter.zip", Path(work) / "folder"
            folder.mkdir()
            with Connection(url, key).download(path, asked.query) as response, archive.open("wb") as file:
                digest = response.headers["etag"].strip('"')
                task = bar.add_task(asked.name, total=None)
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    bar.advance(task, len(chunk))
            unpack_zip(archive, folder, MAX_DOWNLOAD)
            if files_digest(folder) != digest:
                raise ValueError("what came is not what the server calls it: download it again")
            shutil.move(folder, target)
        _tell({"folder": str(target), "digest": digest}, f"{target}: {digest}", as_json)


def ls(
    tenant: Annotated[str | None, typer.Option(help="Only yours (your tenant's name), or `public`.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind, such as `prompt_tuning`.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    resident: Annotated[bool | None, typer.Option(help="Only those in, or not in, the engine's memory.")] = None,
    limit: Annotated[int, typer.Option(help="The most to list.", min=1)] = 1000,
    url: Url = SERVER,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the adapters that you can use."""
    asked = {"tenant": tenant, "kind": kind, "tag": tag, "resident": resident}
    query: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    with _explained():
        connection = Connection(url, key)
        cards: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True, "last_id": ""}
        while page["has_more"] and len(cards) < limit:
            wanted = min(1000, limit - len(cards))
            page = connection.get("/adapters", query | {"limit": wanted, "after": page["last_id"]})
            cards += page["data"]
    if as_json:
        out.print_json(data=cards)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("adapter", "latest", "kind", "tokens", "aliases", "state", "tags"):
        table.add_column(column)
    for card in cards:
        aliases = ", ".join(f"{a}={v}" for a, v in card["aliases"].items() if a != "latest")
        state = card["residency"]["state"] + (", pinned" if card["residency"]["pinned"] else "")
        row = [f"{card['tenant']}/{card['name']}", card["version"], card["kind"], str(card["num_virtual_tokens"])]
        table.add_row(*row, aliases, state, ", ".join(card["tags"]))
    out.print(table)


def show(reference: Name, url: Url = SERVER, key: Key = None, as_json: AsJson = False) -> None:
    """Show an adapter, its versions and its aliases."""
    asked = parse(reference)
    with _explained():
        connection = Connection(url, key)
        card = connection.get(adapter_path(asked.name), asked.query)
        versions = connection.get(adapter_path(asked.name, "versions"), {**asked.query, "limit": 1000})["data"]
    if as_json:
        out.print_json(data={**card, "versions": versions})
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in card.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict | list) else str(value))
    for version in versions:
        meaning = [alias for alias, meant in card["aliases"].items() if meant == version["version"]]
        table.add_row(version["version"], f"{version['digest']} {' '.join(meaning)}")
    out.print(table)


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="A number, another alias, or a digest.")],
    alias: Annotated[str, typer.Option(help="The alias that is to mean it.")] = "prod",
    if_revision: Annotated[int | None, typer.Option(help="Only if the adapter is at this revision.")] = None,
    url: Url = SERVER,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let an alias mean a version."""
    path = adapter_path(parse(name).name, "aliases", alias)
    _moved(name, lambda: Connection(url, key).send("PUT", path, {"version": version}, revision=if_revision), as_json)


def rollback(
    name: Name,
    alias: Annotated[str, typer.Option(help="The alias.")] = "prod",
    if_revision: Annotated[int | None, typer.Option(help="Only if the adapter is at this revision.")] = None,
    url: Url = SERVER,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let an alias mean what it did before it was moved last."""
    path = adapter_path(parse(name).name, "aliases", f"{alias}:rollback")
    _moved(name, lambda: Connection(url, key).send("POST", path, revision=if_revision), as_json)


def pin(
    reference: Ref,
    off: Annotated[bool, typer.Option("--off", help="Let it be evicted as any other.")] = False,
    url: Url = SERVER,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Load an adapter into the engine's memory and keep it there, on the server that is asked."""
    asked = parse(reference)
    with _explained():
        path = adapter_path(asked.name, "residency")
        found = Connection(url, key).send("PUT", path, {"pinned": not off}, version=asked.version)
        state = "pinned" if found["pinned"] else "not pinned"
        _tell(found, f"{asked.name}@{found['version']} is {state}, in {found['state']}", as_json)


def rm(
    reference: Ref,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = SERVER,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Delete an adapter with all its versions, or one version (`name@v3`)."""
    asked = parse(reference)
    one = "@" in reference
    what = reference if one else f"{reference} with all its versions"
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with _explained():
        path = adapter_path(asked.name, "versions", asked.version) if one else adapter_path(asked.name)
        Connection(url, key).send("DELETE", path)
        _tell({"deleted": reference}, f"{what} is deleted", as_json)


def verify(reference: Ref, url: Url = SERVER, key: Key = None, as_json: AsJson = False) -> None:
    """Let the server compare an adapter's logits with the base model's alone; status 1 where they differ."""
    asked = parse(reference)
    with _explained():
        query: dict[str, Any] = {"version": asked.version, **asked.query}
        found = Connection(url, key).send("POST", adapter_path(f"{asked.name}:verify"), **query)
        verdict = "computes what it should" if found["holds"] else "DIFFERS from the base model alone"
        _tell(
            found,
            f"{found['tenant']}/{found['name']}@{found['version']} {verdict}: off by {found['error']:.2g} in "
            f"{found['dtype']} ({found['allowed']:.2g} is allowed), {found['same_tokens']} of {found['positions']} "
            "likeliest tokens are the same",
            as_json,
        )
    if not found["holds"]:
        raise SystemExit(1)


def _moved(name: str, move: Callable[[], Any], as_json: bool) -> None:
    with _explained():
        found = move()
        before = found["before"] or "nothing"
        _tell(found, f"{parse(name).name}@{found['alias']} means {found['version']}; before: {before}", as_json)


def _tell(card: Any, line: str, as_json: bool) -> None:
    if as_json:
        out.print_json(data=card)
    else:
        out.print(line, markup=False)


def _progress(*, quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line what went wrong, and end with status 2."""
    try:
        yield
    except WaybillError as error:
        reason = f"{error.message} ({error.code})"
    except (ConnectionError, ValueError, OSError) as error:
        reason = str(error)
    else:
        return
    err.print(f"waybill: {reason}", markup=False)
    raise SystemExit(2)
