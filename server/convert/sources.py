"""What is to be converted: which file, and of which tool. Found by name; nothing is read here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from server.errors import AdapterRejected, InvalidRequest
from server.formats.judge import CONFIG, TENSORS


class SourceKind(StrEnum):
    """The tools whose files can be converted."""

    PEFT_BIN = "peft-bin"
    TGIS = "tgis"
    CARTRIDGE = "cartridge"
    KOBOLDAI = "koboldai"


ANY_LENGTH = 1_000_000
"""Virtual tokens. How many are served is the server's to say, not the converter's."""

_NAMES = (
    (re.compile(r"adapter_model\.bin"), SourceKind.PEFT_BIN),
    (re.compile(r"(?:de|en)coder\.pt"), SourceKind.TGIS),
    (re.compile(r"cache-(?:step|epoch)[0-9]+\.pt|cache_last\.pt|kv_cache\.torch"), SourceKind.CARTRIDGE),
    (re.compile(r".*\.zip", re.IGNORECASE), SourceKind.KOBOLDAI),
)
_ENCODER = (
    "encoder.pt holds virtual tokens for the encoder of an encoder-decoder model (such as T5), and the server runs "
    "decoders only: needed is a decoder.pt without an encoder.pt beside it"
)
_EXPECTED = "adapter_model.bin, decoder.pt, cache-step<n>.pt, cache_last.pt or a soft prompt's .zip"


@dataclass(frozen=True, slots=True)
class Source:
    """One file to convert. `config` is the adapter_config.json beside it, for PEFT's files only."""

    kind: SourceKind
    file: Path
    config: Path | None = None


def find_source(path: Path, kind: SourceKind | None = None) -> Source:
    """Return what to convert at `path`, a file or a folder with one file of a known name.

    `kind` says which tool's a file of another name is. Raises InvalidRequest where there is no such file or it could be
    several, AdapterRejected for what is known and cannot be served.
    """
    file = _in_folder(path) if path.is_dir() else path
    if not file.is_file():
        raise InvalidRequest(f"{path} is no file or folder that can be read", param="source")
    if file.name == TENSORS:
        raise InvalidRequest(f"{file} is what the server takes already: publish its folder as it is", param="source")
    kind = kind or next((found for pattern, found in _NAMES if pattern.fullmatch(file.name)), None)
    if kind is None:
        raise InvalidRequest(
            f"{file.name} is no known name ({_EXPECTED}): say which tool wrote it with --kind {' | '.join(SourceKind)}",
            param="source",
        )
    if kind is SourceKind.TGIS and (file.name == "encoder.pt" or (file.parent / "encoder.pt").exists()):
        raise AdapterRejected(_ENCODER)
    if kind is not SourceKind.PEFT_BIN:
        return Source(kind, file)
    config = file.parent / CONFIG
    if not config.is_file():
        raise AdapterRejected(f"{file} has no {CONFIG} beside it, which says what its tensors are")
    return Source(kind, file, config)


def _in_folder(folder: Path) -> Path:
    """The one file of a known name; the decoder's before the encoder's, which decides nothing alone."""
    found = sorted(entry for entry in folder.iterdir() if any(pattern.fullmatch(entry.name) for pattern, _ in _NAMES))
    if any(entry.name == "decoder.pt" for entry in found):
        found = [entry for entry in found if entry.name != "encoder.pt"]
    if not found and (folder / TENSORS).exists():
        return folder / TENSORS
    if len(found) != 1:
        has = f"has {len(found)}: {', '.join(entry.name for entry in found[:8])}" if found else "has none"
        raise InvalidRequest(f"{folder} {has}; name one file, or a folder with one of {_EXPECTED}", param="source")
    return found[0]
