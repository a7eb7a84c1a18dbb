"""Tests run on every core: files side by side, those with whole servers one after the other beside all the rest."""

from __future__ import annotations

import os

import pytest
import torch

# Before anything imports Triton: its kernels run on the CPU, by its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Tiny models run fastest on one thread; two only wait for each other.
torch.set_num_threads(1)

SERVERS = ("tests/e2e/", "tests/clients/", "tests/docs/test_docs_run.py")
"""A server of these has the base model, and all its threads: two at once would only wait for each other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, for what they share; servers come first, since they take longest."""
    for item in items:
        path = item.path.relative_to(config.rootpath).as_posix()
        item.add_marker(pytest.mark.xdist_group("servers" if path.startswith(SERVERS) else path))
    items.sort(key=lambda item: not item.path.relative_to(config.rootpath).as_posix().startswith(SERVERS))
