"""Nothing is left of what was refused, and what crashes leave is put right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import AdapterNotFound, AdapterRejected
from server.formats.judge import judge_folder
from server.store.opening import local_store
from server.store.store import AdapterStore
from tests.formats.folders import BASE, make_folder
from tests.formats.test_judge import FAULTS, Case
from tests.store.crashes import kill_at_random_moments
from tests.store.writing import TENANT, publish, traces


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return local_store(tmp_path / "store")


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_what_is_refused_leaves_no_trace(case: Case, store: AdapterStore) -> None:
    publish(store, "kept")
    before = traces(store)
    with pytest.raises(AdapterRejected):
        upload(store, case)
    (store.backend.root / ".staging" / "elsewhere").unlink(missing_ok=True)  # the target of the case's link
    assert traces(store) == before


def upload(store: AdapterStore, case: Case) -> None:
    with store.stage() as staging:
        case.make(staging.folder)
        judge_folder(staging.folder, BASE)


def test_an_entry_that_a_crash_left_incomplete_is_passed_over(store: AdapterStore) -> None:
    first = publish(store, "spam", fill=b"a")[0]
    (store.backend.root / TENANT / "spam" / "log" / "999999999997.json").write_bytes(b'{"revision": 2, "ali')
    again = local_store(store.backend.root)
    assert again.resolve(TENANT, "spam") == first
    second = publish(again, "spam", fill=b"b")[0]
    assert local_store(store.backend.root).resolve(TENANT, "spam") == second
    assert second.number == 2


def test_sweeping_removes_what_crashes_left_and_nothing_else(store: AdapterStore) -> None:
    kept = publish(store, "spam", fill=b"a")[0]
    gone = publish(store, "gone")[0]
    store.delete(TENANT, "gone")
    make_folder(store.backend.root / ".staging" / "dead")
    unfinished = make_folder(store.backend.root / TENANT / "spam" / "versions" / "000002")
    with store.stage() as held:
        make_folder(held.folder)
        local_store(store.backend.root).sweep()
        assert (held.folder / "adapter_config.json").is_file()
        assert not (store.backend.root / ".staging" / "dead").exists()
    assert not unfinished.exists()
    assert not gone.folder.exists()
    assert local_store(store.backend.root).versions(TENANT, "spam") == [kept]
    assert publish(store, "gone")[0].number == 2


@pytest.mark.parametrize("first", [True, False])
def test_a_version_whose_publisher_died_before_its_name_moved(first: bool, store: AdapterStore) -> None:
    if not first:
        publish(store, "spam", fill=b"a")
    version = publish(store, "spam", fill=b"b")[0]
    newest = min((store.backend.root / TENANT / "spam" / "log").iterdir())
    newest.unlink()
    for finish in (lambda store: store.sweep(), lambda store: publish(store, "spam", fill=b"b")):
        again = local_store(store.backend.root)
        with pytest.raises(AdapterNotFound):
            again.resolve(TENANT, "spam", number=version.number)
        finish(again)
        assert again.resolve(TENANT, "spam") == version
        min((store.backend.root / TENANT / "spam" / "log").iterdir()).unlink()


def test_a_publisher_killed_at_random_moments_leaves_whole_versions_or_none(tmp_path: Path) -> None:
    assert kill_at_random_moments(tmp_path, rounds=10, seed=0) == 10


def test_a_writer_that_dies_at_any_step_leaves_whole_versions_or_none(tmp_path: Path) -> None:
    """Its own process makes and watches the dying ones: a fork of this one would carry its threads' locks along."""
    command = [sys.executable, "-m", "tests.store.crashes", str(tmp_path), "--every", "9"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("died") >= 20
