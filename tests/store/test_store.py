"""The adapter store: versions, names, and what several processes and damaged disks do to them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from server.core import AdapterKind
from server.errors import AdapterNotFound, InvalidRequest, Unavailable, WaybillError
from server.formats.judge import judge_folder
from server.store.digest import files_digest
from server.store.opening import local_store
from server.store.store import TRUST_SECONDS, AdapterStore
from tests.formats.folders import BASE, make_folder
from tests.store.writing import TENANT, publish, traces

MULTI = AdapterKind.MULTITASK_PROMPT_TUNING


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return local_store(tmp_path / "store")


def test_versions_count_up_and_the_name_points_to_the_last(store: AdapterStore) -> None:
    first, created = publish(store, "spam", fill=b"a")
    assert created
    assert (first.tenant, first.name, first.number, first.label) == (TENANT, "spam", 1, "v1")
    second, created = publish(store, "spam", fill=b"b")
    assert created
    assert second.number == 2
    assert store.resolve(TENANT, "spam") == second
    assert store.resolve(TENANT, "spam", number=1) == first
    assert store.resolve(TENANT, "spam", digest=first.digest) == first
    assert store.versions(TENANT, "spam") == [second, first]


def test_the_layout_is_a_plain_folder_a_manifest_and_a_log(store: AdapterStore) -> None:
    version, _ = publish(store, "spam")
    assert version.folder == store.backend.root / TENANT / "spam" / "versions" / "000001"
    assert sorted(path.name for path in version.folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    ]  # fmt: skip
    assert version.tensors.read_bytes()[-1:] == b"\x3d"
    publish(store, "spam", fill=b"b")
    log = sorted((store.backend.root / TENANT / "spam" / "log").iterdir())
    newest, oldest = (json.loads(path.read_text()) for path in log)
    assert (newest["revision"], newest["aliases"], newest["last_version"]) == (2, {"latest": 2}, 2)
    assert (oldest["revision"], oldest["aliases"], oldest["last_version"]) == (1, {"latest": 1}, 1)
    assert not list((store.backend.root / ".staging").iterdir())


def test_same_bytes_are_the_existing_version_and_the_name_stays(store: AdapterStore) -> None:
    first, _ = publish(store, "spam", fill=b"a")
    second, _ = publish(store, "spam", fill=b"b")
    assert publish(store, "spam", fill=b"a") == (first, False)
    assert publish(store, "spam", fill=b"b") == (second, False)
    assert store.resolve(TENANT, "spam") == second
    other, created = publish(store, "other", fill=b"a")
    assert created
    assert other.digest == first.digest


def test_all_that_was_judged_comes_back(store: AdapterStore) -> None:
    sidecar = {
        "template": "{v:0-3}{text} {{x}}{v:4}",
        "fields": {"text": {"required": False, "max_tokens": 9, "truncate": "right"}},
        "chat": "before_last_user",
        "tasks": {"a": 2, "b": 0},
        "provenance": {"trainer": "ä"},
        "probe": {"input_ids": [1, 2], "greedy": [3]},
    }
    published, _ = publish(store, "spam", kind=MULTI, sidecar=sidecar)
    other = publish(store, "other", sidecar={"embed_scale": "as_is"})[0]
    again = local_store(store.backend.root)
    assert again.resolve(TENANT, "spam") == published
    assert again.resolve(TENANT, "other") == other
    assert published.spec == judge_folder(published.folder, BASE, published=True)


def test_a_scaled_adapter_stays_scaled(store: AdapterStore) -> None:
    with store.stage() as staging:
        make_folder(staging.folder, sidecar={"embed_scale": "sqrt_hidden"})
        spec = judge_folder(staging.folder, replace(BASE, family="gemma"))
        store.publish(TENANT, "spam", staging.folder, spec)
    assert local_store(store.backend.root).resolve(TENANT, "spam").spec == spec
    assert spec.scale_by_sqrt_hidden


def test_the_digest_is_what_sha256sum_says(store: AdapterStore) -> None:
    version, _ = publish(store, "spam")
    assert files_digest(version.folder) == version.digest
    script = "sha256sum adapter_config.json adapter_model.safetensors | sha256sum"
    shown = subprocess.run(["sh", "-c", script], cwd=version.folder, capture_output=True, text=True, check=True)
    assert version.digest == f"sha256:{shown.stdout.split()[0]}"
    assert version.num_bytes == sum(
        path.stat().st_size for path in version.folder.iterdir() if path.name != "manifest.json"
    )
    with version.tensors.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    assert files_digest(version.folder) != version.digest


def test_what_is_not_there_is_not_found(store: AdapterStore) -> None:
    publish(store, "spam")
    for arguments, reason in [
        (("default", "ham"), "there is no adapter 'ham'"),
        (("acme", "spam"), "there is no adapter 'spam'"),
    ]:
        with pytest.raises(AdapterNotFound, match=reason):
            store.resolve(*arguments)
        with pytest.raises(AdapterNotFound, match=reason):
            store.versions(*arguments)
        with pytest.raises(AdapterNotFound, match=reason):
            store.delete(*arguments)
    with pytest.raises(AdapterNotFound, match="'spam' has no version v2; the latest is v1"):
        store.resolve(TENANT, "spam", number=2)
    with pytest.raises(AdapterNotFound, match="'spam' has no version of digest sha256:0"):
        store.resolve(TENANT, "spam", digest="sha256:0")
    assert store.list("nobody") == []


@pytest.mark.parametrize("name", ["", "..", ".staging", "a/b", "a\n", "a,b", "A", "/etc", "x" * 65])
def test_no_other_name_becomes_a_path(name: str, store: AdapterStore) -> None:
    for call in (store.resolve, store.versions, store.delete, store.purge):
        with pytest.raises(InvalidRequest):
            call(TENANT, name)
        with pytest.raises(InvalidRequest):
            call(name, "spam")
    with pytest.raises(InvalidRequest):
        store.list(name)
    with pytest.raises(InvalidRequest):
        publish(store, name)
    assert traces(store) == set()


def test_a_link_that_leads_out_of_the_store_is_not_followed(store: AdapterStore, tmp_path: Path) -> None:
    elsewhere = local_store(tmp_path / "elsewhere")
    publish(elsewhere, "spam")
    (store.backend.root / TENANT).symlink_to(elsewhere.backend.root / TENANT)
    with pytest.raises(AdapterNotFound, match="lies outside the adapter store"):
        store.resolve(TENANT, "spam")


def test_a_list_has_the_latest_of_each_name(store: AdapterStore) -> None:
    publish(store, "b", fill=b"a")
    newest = publish(store, "b", fill=b"b")[0]
    only = publish(store, "a")[0]
    publish(store, "c", tenant="acme")
    publish(store, "gone")
    store.delete(TENANT, "gone")
    (store.backend.root / TENANT / "README.md").write_text("not an adapter")
    (store.backend.root / TENANT / "empty").mkdir()
    assert store.list(TENANT) == [only, newest]


def test_a_deleted_name_is_gone_at_once_and_its_files_with_purge(store: AdapterStore) -> None:
    versions = [publish(store, "spam", fill=fill)[0] for fill in (b"a", b"b")]
    store.resolve(TENANT, "spam")
    store.delete(TENANT, "spam")
    for number in (None, 1, 2):
        with pytest.raises(AdapterNotFound, match="there is no adapter"):
            store.resolve(TENANT, "spam", number=number)
    with pytest.raises(AdapterNotFound):
        store.resolve(TENANT, "spam", digest=versions[0].digest)
    assert all(version.tensors.is_file() for version in versions)
    store.purge(TENANT, "spam")
    assert not any(version.folder.exists() for version in versions)
    store.purge(TENANT, "spam")
    store.purge(TENANT, "never")


@pytest.mark.parametrize("purged", [False, True])
def test_numbers_are_never_used_again(purged: bool, store: AdapterStore) -> None:
    publish(store, "spam", fill=b"a")
    publish(store, "spam", fill=b"b")
    store.delete(TENANT, "spam")
    if purged:
        store.purge(TENANT, "spam")
    again, created = publish(store, "spam", fill=b"a")
    assert (again.number, created) == (3, True)
    assert store.versions(TENANT, "spam") == [again]
    with pytest.raises(AdapterNotFound):
        store.resolve(TENANT, "spam", number=1)
    store.purge(TENANT, "spam")
    assert store.resolve(TENANT, "spam") == again
    assert files_digest(again.folder) == again.digest


def test_another_process_is_seen_within_two_seconds(tmp_path: Path) -> None:
    clock = Clock()
    reader, writer = local_store(tmp_path, clock=clock), local_store(tmp_path)
    with pytest.raises(AdapterNotFound):
        reader.resolve(TENANT, "spam")
    first = publish(writer, "spam", fill=b"a")[0]
    assert reader.resolve(TENANT, "spam") == first  # what is not there is never remembered
    second = publish(writer, "spam", fill=b"b")[0]
    assert reader.resolve(TENANT, "spam") == first
    clock.now += TRUST_SECONDS
    assert reader.resolve(TENANT, "spam") == second
    third = publish(writer, "spam", fill=b"c")[0]
    assert reader.resolve(TENANT, "spam", number=3) == third
    writer.delete(TENANT, "spam")
    clock.now += TRUST_SECONDS
    with pytest.raises(AdapterNotFound):
        reader.resolve(TENANT, "spam")


def test_ones_own_writing_is_seen_at_once(tmp_path: Path) -> None:
    store = local_store(tmp_path, clock=Clock())
    for fill in (b"a", b"b"):
        version = publish(store, "spam", fill=fill)[0]
        assert store.resolve(TENANT, "spam") == version
    store.delete(TENANT, "spam")
    with pytest.raises(AdapterNotFound):
        store.resolve(TENANT, "spam")


def test_a_trusted_name_is_resolved_without_the_disk(tmp_path: Path) -> None:
    clock = Clock()
    store = local_store(tmp_path / "store", clock=clock)
    version = publish(store, "spam")[0]
    (tmp_path / "store").rename(tmp_path / "away")
    assert store.resolve(TENANT, "spam") == version
    clock.now += TRUST_SECONDS
    with pytest.raises(AdapterNotFound):
        store.resolve(TENANT, "spam")


def test_memory_is_bounded_and_forgetting_costs_nothing_but_time(tmp_path: Path) -> None:
    store = local_store(tmp_path, cache_size=2)
    made = {name: publish(store, name)[0] for name in ("a", "b", "c", "d")}
    for _ in range(2):
        for name, version in made.items():
            assert store.resolve(TENANT, name) == version


def test_publishers_at_once_get_versions_of_their_own(tmp_path: Path) -> None:
    stores = [local_store(tmp_path), local_store(tmp_path)]
    numbers: list[int] = []

    def work(worker: int) -> None:
        for turn in range(4):
            fill = bytes([worker * 16 + turn])
            numbers.append(publish(stores[worker % 2], "spam", fill=fill)[0].number)

    run_all([lambda worker=worker: work(worker) for worker in range(4)])
    assert sorted(numbers) == list(range(1, 17))
    found = local_store(tmp_path).versions(TENANT, "spam")
    assert [version.number for version in found] == list(range(16, 0, -1))
    assert all(files_digest(version.folder) == version.digest for version in found)


def test_publishers_of_the_same_bytes_at_once_make_one_version(tmp_path: Path) -> None:
    made: list[tuple[int, bool]] = []

    def work() -> None:
        version, created = publish(local_store(tmp_path), "spam")
        made.append((version.number, created))

    run_all([work] * 6)
    assert sorted(made) == [(1, False)] * 5 + [(1, True)]


def test_writers_in_other_processes_take_turns(store: AdapterStore) -> None:
    code = (
        "import sys; from pathlib import Path; from server.store.opening import local_store; "
        "from tests.store.writing import publish; store = local_store(Path(sys.argv[1])); "
        "[publish(store, 'spam', fill=bytes([int(sys.argv[2]) + i])) for i in range(5)]"
    )
    command = [sys.executable, "-c", code, str(store.backend.root)]
    workers = [subprocess.Popen([*command, str(start)]) for start in (0, 100)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert [version.number for version in store.versions(TENANT, "spam")] == list(range(10, 0, -1))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links_will_do(code: int, tmp_path: Path) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    store = local_store(tmp_path, link=link)
    first = publish(store, "spam", fill=b"a")[0]
    second = publish(store, "spam", fill=b"b")[0]
    assert local_store(tmp_path).versions(TENANT, "spam") == [second, first]
    store.delete(TENANT, "spam")
    assert publish(store, "spam", fill=b"a")[0].number == 3


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = local_store(tmp_path, link=link)
    with pytest.raises(Unavailable, match="cannot be written: No space left on device"):
        publish(store, "spam")
    assert not list(store.backend.root.rglob("adapter_config.json"))
    with pytest.raises(AdapterNotFound):
        store.resolve(TENANT, "spam")


def test_a_store_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Unavailable, match=f"the adapter store {root} cannot be opened"):
            local_store(root)
    assert local_store(tmp_path / "new" / "store").list(TENANT) == []


def test_a_store_that_takes_no_writing_serves_what_it_has(store: AdapterStore) -> None:
    version = publish(store, "spam")[0]
    (store.backend.root / ".staging").rmdir()
    (store.backend.root / ".staging").write_text("in the way")
    again = local_store(store.backend.root)
    again.sweep()
    assert again.resolve(TENANT, "spam") == version
    for call in (lambda: publish(again, "spam", fill=b"b"), lambda: again.delete(TENANT, "spam")):
        with pytest.raises(Unavailable, match="the adapter store cannot be written: ") as caught:
            call()
        assert caught.value.retry_after


def test_a_damaged_version_is_an_error_of_its_own_and_stops_nothing_else(
    store: AdapterStore, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (publish(store, "spam", fill=fill)[0] for fill in (b"a", b"b", b"c"))
    fine = publish(store, "fine")[0]
    store.move_alias(TENANT, "spam", "latest", 2)
    for damage in ("{", "{}", "[]", '{"format": 9}', json.dumps({"format": 1, "digest": "x", "created": 0})):
        (second.folder / "manifest.json").write_text(damage)
        again = local_store(store.backend.root)
        with pytest.raises(WaybillError, match="version v2 of adapter 'spam' is damaged"):
            again.resolve(TENANT, "spam")
        assert again.list(TENANT) == [fine]
        assert again.versions(TENANT, "spam") == [third, first]
        assert "default/spam: version v2" in caplog.text
        caplog.clear()
    assert publish(again, "spam", fill=b"d")[0].number == 4


def test_versions_are_read_as_far_as_they_are_asked_for(store: AdapterStore) -> None:
    for fill in range(7):
        publish(store, "spam", fill=bytes([fill]))
    store.delete_version(TENANT, "spam", 4)
    again = local_store(store.backend.root)
    reads: list[int] = []
    manifest = again.backend.manifest
    again.backend.manifest = lambda home, number: (reads.append(number), manifest(home, number))[1]  # type: ignore[method-assign]

    def numbers(before: int, limit: int | None) -> list[int]:
        return [version.number for version in again.versions(TENANT, "spam", before=before, limit=limit)]

    assert numbers(6, 2) == [5, 3]
    assert reads == [5, 3]
    assert numbers(0, 2) == [7, 6]
    assert numbers(3, 9) == [2, 1]
    assert numbers(0, None) == [7, 6, 5, 3, 2, 1]
    assert numbers(1, 2) == []


def test_the_newest_version_is_known_from_the_log_alone(store: AdapterStore) -> None:
    """A name costs a reader one listing and one read; what an older server wrote, or is long, costs one more."""
    publish(store, "spam", fill=b"a")
    newest = publish(store, "spam", fill=b"b")[0]
    reads: list[int] = []

    def again() -> AdapterStore:
        opened = local_store(store.backend.root)
        manifest = opened.backend.manifest
        reads.clear()
        opened.backend.manifest = lambda home, number: (reads.append(number), manifest(home, number))[1]  # type: ignore[method-assign]
        return opened

    assert (again().resolve(TENANT, "spam"), reads) == (newest, [])
    assert (again().list(TENANT), reads) == ([newest], [])
    assert again().resolve(TENANT, "spam", number=1).number == 1
    assert reads == [1]
    store.move_alias(TENANT, "spam", "prod", 1)
    assert (again().resolve(TENANT, "spam"), reads) == (newest, [])
    entry = store.backend.root / TENANT / "spam" / "log"
    path = min(entry.iterdir())
    old = json.loads(path.read_text())
    del old["manifest"]
    path.write_text(json.dumps(old))
    assert (again().resolve(TENANT, "spam"), reads) == (newest, [2])


def test_a_staged_folder_is_new_empty_and_gone_afterwards(store: AdapterStore) -> None:
    with store.stage() as one, store.stage() as two:
        assert one.folder != two.folder
        assert not list(one.folder.iterdir())
        assert stat.S_ISDIR(one.folder.stat().st_mode)
        (one.folder / "x").write_bytes(hashlib.sha256().digest())
    assert traces(store) == set()
    with pytest.raises(ZeroDivisionError), store.stage():
        _ = 1 / 0
    assert traces(store) == set()


def run_all(work: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
