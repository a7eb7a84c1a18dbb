"""Convert in a child process and publish its two files at once: the target folder is whole or not there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from server.convert.sources import ANY_LENGTH, Source, SourceKind, find_source
from server.core import AdapterKind
from server.errors import AdapterRejected, InvalidRequest, WaybillError
from server.formats.headers import read_header
from server.formats.judge import CONFIG, TENSORS
from server.formats.peft_config import parse_peft_config
from server.formats.strict_json import Malformed

_WAIT_SECONDS = 1800
_PACKAGE = Path(__file__).resolve().parents[1]
_FLAGS = ("-P", "-S", "-B")
"""The child finds this package and Python's own library: nothing else that is installed, nothing in the folder where
the command was given. It writes no bytecode."""

_SIGNALS = {
    signal.SIGXCPU: "reading it took more processor time than any file of its size needs",
    signal.SIGBUS: "it became shorter while it was read",
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted. `shape` is of `prompt_embeddings`; `notes` are for the person who asked."""

    source: Source
    target: Path
    kind: AdapterKind
    num_virtual_tokens: int
    shape: tuple[int, ...]
    dtype: str
    notes: tuple[str, ...]


def convert_file(source: Path, target: Path, kind: SourceKind | None = None) -> Conversion:
    """Write the adapter in `source` as a plain PEFT folder at `target`, which must not exist yet.

    The file is read by a process of its own that can open nothing else (`server.convert.child`). `target` appears
    whole, by one rename; a refusal leaves nothing. Raises InvalidRequest where the paths are at fault, AdapterRejected
    where the file is.
    """
    found = find_source(source, kind)
    if os.path.lexists(target):
        raise InvalidRequest(f"{target} is there already; name a folder that is not", param="target")
    draft = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        draft.mkdir()
    except OSError as error:
        raise InvalidRequest(f"{target.parent} takes no folder: {error.strerror}", param="target") from error
    try:
        notes = _run(found, draft)
        made = _read_back(found, target, draft, notes)
        _publish(draft, target)
    except OSError as error:
        raise InvalidRequest(f"{target} cannot be written: {error.strerror}", param="target") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return made


def _run(source: Source, draft: Path) -> tuple[str, ...]:
    """Let the child fill `draft`, and return its notes."""
    request = {
        "kind": source.kind,
        "file": str(source.file.absolute()),
        "config": None if source.config is None else str(source.config.absolute()),
        "target": str(draft.absolute()),
    }
    command = [sys.executable, *_FLAGS, "-m", "server.convert.child", json.dumps(request)]
    try:
        ended = subprocess.run(
            command,
            env={"PYTHONPATH": str(_PACKAGE.parent), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_WAIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AdapterRejected(f"{source.file.name}: reading it took over {_WAIT_SECONDS} seconds") from error
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode)
        reason = _SIGNALS.get(name, f"the process that read it was ended by {name.name}")
        raise AdapterRejected(f"{source.file.name}: {reason}")
    if ended.returncode:
        lines = ended.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise WaybillError(f"the process that read {source.file.name} failed: {lines[-1]}")
    report = json.loads(ended.stdout)
    if "rejected" in report:
        raise AdapterRejected(f"{source.file.name}: {report['rejected']}")
    return tuple(str(note) for note in report["notes"])


def _read_back(source: Source, target: Path, draft: Path, notes: tuple[str, ...]) -> Conversion:
    """Read what the child wrote as a stranger's: it has handled what a stranger sent."""
    try:
        tensors = read_header(draft / TENSORS)
        config = parse_peft_config((draft / CONFIG).read_bytes(), ANY_LENGTH)
        table = tensors["prompt_embeddings"]
    except (Malformed, KeyError) as error:
        raise AdapterRejected(f"{source.file.name}: what came out is no adapter: {error}") from error
    return Conversion(source, target, config.kind, config.num_virtual_tokens, table.shape, table.dtype, notes)


def _publish(draft: Path, target: Path) -> None:
    for path in (draft / TENSORS, draft / CONFIG, draft):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if os.path.lexists(target):  # a rename would replace an empty folder
        raise InvalidRequest(f"{target} is there already; name a folder that is not", param="target")
    draft.rename(target)
