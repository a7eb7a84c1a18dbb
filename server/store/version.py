"""One published version of an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.formats.spec import AdapterSpec


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version. `digest` ("sha256:…") is over the names and contents of its files."""

    tenant: str
    name: str
    number: int
    digest: str
    created: int  # seconds since the epoch
    folder: Path
    num_bytes: int
    spec: AdapterSpec

    @property
    def tensors(self) -> Path:
        """The safetensors file."""
        return self.folder / self.spec.tensors

    @property
    def label(self) -> str:
        """The version as people write it: `v3`."""
        return f"v{self.number}"
