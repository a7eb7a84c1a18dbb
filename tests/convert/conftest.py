"""The base model that the converted adapters are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.core import BaseModel
from server.formats.base import read_base_model
from tests.tiny_models import tiny_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The tiny llama: 2 layers, hidden size 32, 2 kv heads of size 8."""
    folder: Path = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    return read_base_model(folder)
