"""The `waybill` command."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server import logs, serving
from server.app import create_app
from server.basemodel import BaseModelError, fetch_base_model
from server.client.commands import add_to
from server.convert.command import convert
from server.core import BaseModel
from server.errors import WaybillError
from server.formats.base import ModelFolderError, read_base_model
from server.formats.judge import AdapterLimits
from server.machine import Machine, read_machine
from server.service.publishing import publish_folder
from server.service.tenants import add_first_key, add_key, read_keys
from server.settings import Plan, Settings, format_size, is_loopback, make_plan
from server.store.opening import open_store

cli = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
model_cli = typer.Typer(help="The embedded base model.", no_args_is_help=True)
keys_cli = typer.Typer(help="API keys.", no_args_is_help=True)
adapters_cli = typer.Typer(help="Adapters: of a running server, and of its store.", no_args_is_help=True)
cli.add_typer(model_cli, name="model")
cli.add_typer(keys_cli, name="keys")
cli.add_typer(adapters_cli, name="adapters")
add_to(adapters_cli)
cli.command()(convert)

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line."""
    cli()


def _about(name: str) -> Any:
    """Return the flag of one setting; its text stands with the setting."""
    flag = f"--{name.replace('_', '-')}"
    return typer.Option(flag, help=Settings.model_fields[name].description, show_default=False)


@cli.command()
def serve(
    host: Annotated[str | None, _about("host")] = None,
    port: Annotated[int | None, _about("port")] = None,
    store: Annotated[str | None, _about("store")] = None,
    store_cache: Annotated[Path | None, _about("store_cache")] = None,
    store_cache_size: Annotated[str | None, _about("store_cache_size")] = None,
    keys: Annotated[Path | None, _about("keys")] = None,
    model: Annotated[Path | None, _about("model")] = None,
    dtype: Annotated[str | None, _about("dtype")] = None,
    device: Annotated[str | None, _about("device")] = None,
    attention: Annotated[str | None, _about("attention")] = None,
    kv_memory: Annotated[str | None, _about("kv_memory")] = None,
    prefix_memory: Annotated[str | None, _about("prefix_memory")] = None,
    max_model_len: Annotated[int | None, _about("max_model_len")] = None,
    max_virtual_tokens: Annotated[int | None, _about("max_virtual_tokens")] = None,
    max_seqs: Annotated[int | None, _about("max_seqs")] = None,
    step_tokens: Annotated[int | None, _about("step_tokens")] = None,
    prompt_cache: Annotated[str | None, _about("prompt_cache")] = None,
    threads: Annotated[int | None, _about("threads")] = None,
    queue: Annotated[int | None, _about("queue")] = None,
    max_upload: Annotated[str | None, _about("max_upload")] = None,
    idle_timeout: Annotated[float | None, _about("idle_timeout")] = None,
    shutdown_timeout: Annotated[float | None, _about("shutdown_timeout")] = None,
    create_first_key: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT", help="Make a key for this tenant if the keys file holds none yet; it is printed once."
        ),
    ] = None,
) -> None:
    """Serve the base model and its adapters over HTTP."""
    flags = {name: value for name, value in locals().items() if name in Settings.model_fields}
    settings = _settings(flags)
    _prepare_keys(settings, create_first_key)
    base = _base_model(settings)
    machine = read_machine()
    try:
        plan = make_plan(settings, base, machine)
        bound = serving.bind(settings.host, settings.port)
    except (ValueError, OSError) as error:
        _fail(str(error))
    _print_plan(settings, plan, machine, port=bound.getsockname()[1])
    logs.configure()
    try:
        app = create_app(settings, plan)
    except (WaybillError, ValueError) as error:
        bound.close()
        _fail(str(error))
    try:
        serving.DrainingServer(app, settings.shutdown_timeout).run(sockets=[bound])
    except SystemExit:
        _fail(app.state.refusal or "the server could not start")


@model_cli.command("fetch")
def fetch_model(model: Annotated[Path | None, _about("model")] = None) -> None:
    """Fetch the base model by hash and convert it, unless it is there."""
    _fetch(_settings({"model": model}).model)


@keys_cli.command("add")
def add(
    tenant: Annotated[str, typer.Argument(help="Whom the key stands for.")],
    keys: Annotated[Path | None, _about("keys")] = None,
) -> None:
    """Make an API key and print it once; the file keeps only its hash."""
    path = _settings({"keys": keys}).keys
    if path is None:
        _fail("say which file: --keys FILE")
    try:
        key = add_key(path, tenant)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except WaybillError as error:
        _fail(error.message)
    out.print(key, markup=False)


@adapters_cli.command("add")
def publish(
    folder: Annotated[Path, typer.Argument(help="A folder that PEFT saved.", exists=True, file_okay=False)],
    name: Annotated[str, typer.Option(help="The adapter's name.")],
    tenant: Annotated[str, typer.Option(help="Whose it is; `public` is everybody's.")] = "default",
    store: Annotated[str | None, _about("store")] = None,
    model: Annotated[Path | None, _about("model")] = None,
    max_virtual_tokens: Annotated[int | None, _about("max_virtual_tokens")] = None,
) -> None:
    """Publish an adapter without a server; one that runs on the store sees it within two seconds.

    Everything that can be known without the base model's weights is judged here; values are judged when it is used.
    """
    settings = _settings({"store": store, "model": model, "max_virtual_tokens": max_virtual_tokens})
    base = _base_model(settings)
    try:
        plan = make_plan(settings, base, read_machine())
        limits = AdapterLimits(plan.engine.max_virtual_tokens)
        with TemporaryDirectory(prefix="waybill-") as cache:
            opened = open_store(settings.store, cache=Path(cache), cache_bytes=settings.store_cache_size)
            version, created = publish_folder(opened, folder, tenant, name, base, limits)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except WaybillError as error:
        _fail(error.message)
    said = "published" if created else "is there already"
    out.print(f"{tenant}/{name}@{version.label} {said}: {version.digest}", markup=False)
    for warning in version.spec.warnings:
        err.print(f"warning: {warning}", markup=False)


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        lines = []
        for finding in error.errors():
            where = ".".join(str(part) for part in finding["loc"])
            text = finding["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {text}" if where else text)
        _fail("; ".join(lines))


def _prepare_keys(settings: Settings, first_tenant: str | None) -> None:
    """Make the first key if asked to; refuse to be reachable without any."""
    if settings.keys is None:
        if first_tenant is not None:
            _fail("--create-first-key needs --keys FILE to keep its hash in")
        return
    try:
        key = None if first_tenant is None else add_first_key(settings.keys, first_tenant)
        known = read_keys(settings.keys)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except WaybillError as error:
        _fail(error.message)
    if key is not None:
        out.print(f"API key of tenant {first_tenant}, shown this once: {key}", markup=False)
    if not known and not is_loopback(settings.host):
        _fail(
            f"{settings.keys} holds no API key, and {settings.host} can be reached from other machines: "
            f"make one with `waybill keys add TENANT --keys {settings.keys}`, or start with --create-first-key TENANT"
        )


def _base_model(settings: Settings) -> BaseModel:
    if settings.model == Settings.model_fields["model"].default and not settings.model.exists():
        _fetch(settings.model)
    try:
        return read_base_model(settings.model)
    except ModelFolderError as error:
        _fail(str(error))


def _fetch(target: Path) -> None:
    try:
        fetch_base_model(target, lambda line: out.print(line, markup=False))
    except BaseModelError as error:
        _fail(str(error))


def _print_plan(settings: Settings, plan: Plan, machine: Machine, port: int) -> None:
    engine = plan.engine
    rows = {
        "machine": str(machine),
        "model": f"{engine.base.name} ({engine.base.family}), {engine.base.digest[:19]}",
        "store": settings.store,
        "keys": "none: this machine only" if settings.keys is None else str(settings.keys),
        "dtype, device": f"{engine.dtype}, {engine.device}, {engine.threads} threads",
        "kv-memory": format_size(engine.kv_memory),
        "prefix-memory": format_size(engine.prefix_memory),
        "max-model-len": f"{engine.max_model_len} tokens",
        "max-virtual-tokens": str(engine.max_virtual_tokens),
        "max-seqs": str(engine.max_seqs),
        "step-tokens": str(engine.step_tokens),
        "prompt-cache": settings.prompt_cache,
        "queue": str(plan.queue),
        "max-upload": format_size(plan.max_upload),
        "idle-timeout": f"{settings.idle_timeout:g} s",
        "shutdown-timeout": f"{settings.shutdown_timeout:g} s",
        "address": f"http://{settings.host}:{port}",
    }
    table = Table(show_header=False, box=None, title="Waybill", title_justify="left", pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    out.print(table)


def _fail(reason: str) -> NoReturn:
    """Say why and end. Not `typer.Exit`, which an enclosing `except` for the work's own errors could swallow."""
    err.print(f"waybill: {reason}", markup=False)
    raise SystemExit(2)
