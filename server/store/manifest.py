"""A version's `manifest.json`: its files, its digest, and what was judged of it, so that no reader judges again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.core import AdapterKind
from server.errors import WaybillError
from server.formats.spec import AdapterSpec, FieldRule
from server.formats.template import parse_template
from server.store.backend import Home
from server.store.digest import StoredFile
from server.store.version import Version

FORMAT = 1


def encode_manifest(files: tuple[StoredFile, ...], digest: str, created: int, spec: AdapterSpec) -> bytes:
    """Return the manifest. It names neither tenant nor version: the folder that it lies in says so."""
    manifest = {
        "format": FORMAT,
        "digest": digest,
        "created": created,
        "files": {file.name: {"sha256": file.sha256, "num_bytes": file.num_bytes} for file in files},
        "spec": {**asdict(spec), "template": spec.template.source if spec.template else None},
    }
    return json.dumps(manifest, indent=2).encode() + b"\n"


def decode_manifest(data: bytes, home: Home, number: int, folder: Callable[[Home, int, str], Path]) -> Version:
    """Return the version that a manifest describes; `folder` says where its files are.

    Raises ValueError for anything but a manifest.
    """
    try:
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r} is not {FORMAT}")
        return Version(
            tenant=home.tenant,
            name=home.name,
            number=number,
            digest=str(manifest["digest"]),
            created=int(manifest["created"]),
            folder=folder(home, number, str(manifest["digest"])),
            num_bytes=sum(int(file["num_bytes"]) for file in manifest["files"].values()),
            spec=_spec(manifest["spec"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error!r}") from error


def file_names(data: bytes) -> list[str]:
    """Return the names of a version's files. Raises WaybillError for anything but a manifest."""
    try:
        names = [str(name) for name in json.loads(data)["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise WaybillError(f"not a manifest: {error!r}") from error
    if any(Path(name).name != name for name in names):
        raise WaybillError("a manifest names a file outside its folder")
    return names


def _spec(source: dict[str, Any]) -> AdapterSpec:
    kind, count = AdapterKind(source["kind"]), int(source["num_virtual_tokens"])
    template, probe = source["template"], source["probe"]
    if Path(source["tensors"]).name != source["tensors"]:
        raise ValueError("the tensor file is not in the folder")
    return AdapterSpec(
        kind=kind,
        num_virtual_tokens=count,
        tensors=source["tensors"],
        tensors_sha256=source["tensors_sha256"],
        num_tasks=source["num_tasks"],
        tasks=tuple((name, index) for name, index in source["tasks"]),
        template=None if template is None else parse_template(template, count, kind),
        fields=tuple(FieldRule(**rule) for rule in source["fields"]),
        chat=source["chat"],
        scale_by_sqrt_hidden=source["scale_by_sqrt_hidden"],
        warnings=tuple(source["warnings"]),
        judged_for=source["judged_for"],
        provenance=tuple((key, value) for key, value in source["provenance"]),
        probe=None if probe is None else (tuple(probe[0]), tuple(probe[1])),
    )
