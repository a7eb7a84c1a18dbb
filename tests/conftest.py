"""Tests run on every core: files side by side, those with whole servers one after the other beside all the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.e2e.running import RunningServer
from tests.e2e.structured import shipped_server

# Before anything imports Triton: its kernels run on the CPU, by its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Tiny models run fastest on one thread; two only wait for each other.
torch.set_num_threads(1)

SERVERS = ("tests/e2e/", "tests/clients/", "tests/docs/test_docs_run.py")
"""A server of these has the base model, and as many threads as there are cores: two at once would wait for each other.
"""


class ByFile(LoadScopeScheduling):
    """Gives a process a file at a time, for what its tests share; all files with servers are one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "servers" if path.startswith(SERVERS) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Replace the scheduler of `pytest -n`."""
    return ByFile(config, log)


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of the base model with a copy of the shipped adapters, for tests that leave it as they found it."""
    with shipped_server(tmp_path_factory.mktemp("shipped")) as server:
        yield server
