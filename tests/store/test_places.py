"""What holds in every place for versions: a disk, a true S3 server (SeaweedFS), and moto's."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from server.errors import AdapterNotFound, InvalidRequest, RevisionConflict, Unavailable, WaybillError
from server.store.backend import Home
from server.store.bucket import Bucket
from server.store.digest import files_digest
from server.store.file_cache import FileCache
from server.store.opening import local_store, open_store
from server.store.pointers import read_pointers
from server.store.store import TRUST_SECONDS, AdapterStore
from tests.store.buckets import BUCKET, environment
from tests.store.racing import race_alias_moves
from tests.store.writing import TENANT, publish

Open = Callable[[], AdapterStore]
"""Open the place of a test, again each time it is called, as another server would."""


@pytest.fixture(params=["disk", "moto", "seaweed"])
def another(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    if request.param == "disk":
        return lambda: local_store(tmp_path / "store")
    endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/{secrets.token_hex(4)}"
    return lambda: open_store(url, cache=tmp_path / secrets.token_hex(4), cache_bytes=10**8)


@pytest.fixture
def store(another: Open) -> AdapterStore:
    return another()


def test_versions_count_up_and_every_reference_finds_its_own(store: AdapterStore, another: Open) -> None:
    first, created = publish(store, "spam", fill=b"a")
    assert created
    second, created = publish(store, "spam", fill=b"b")
    assert created
    assert (first.number, second.number) == (1, 2)
    for reader in (store, another()):
        assert reader.resolve(TENANT, "spam").digest == second.digest
        assert reader.resolve(TENANT, "spam", number=1).digest == first.digest
        assert reader.resolve(TENANT, "spam", digest=first.digest).number == 1
        assert [version.number for version in reader.versions(TENANT, "spam")] == [2, 1]
        found = reader.resolve(TENANT, "spam", number=1)
        reader.fetch(found)
        assert files_digest(found.folder) == first.digest
        assert found.spec == first.spec


def test_same_bytes_are_the_existing_version_and_the_name_stays(store: AdapterStore) -> None:
    first = publish(store, "spam", fill=b"a")[0]
    second = publish(store, "spam", fill=b"b")[0]
    assert publish(store, "spam", fill=b"a") == (first, False)
    assert store.resolve(TENANT, "spam") == second


def test_an_alias_is_moved_rolled_back_and_removed(store: AdapterStore, another: Open) -> None:
    made = [publish(store, "spam", fill=bytes([turn]))[0] for turn in range(3)]
    assert store.move_alias(TENANT, "spam", "prod", 1).alias("prod") == 1
    assert store.move_alias(TENANT, "spam", "prod", 3).alias("prod") == 3
    assert another().resolve(TENANT, "spam", alias="prod").digest == made[2].digest
    assert store.rollback(TENANT, "spam", "prod").alias("prod") == 1
    assert store.resolve(TENANT, "spam", alias="prod") == made[0]
    assert store.rollback(TENANT, "spam", "latest").alias("latest") == 2
    assert store.resolve(TENANT, "spam") == made[1]
    assert publish(store, "spam", fill=b"new")[0].number == 4
    assert store.resolve(TENANT, "spam").number == 4, "a publish moves the bare name, whatever it meant"
    assert store.remove_alias(TENANT, "spam", "prod").alias("prod") is None
    with pytest.raises(AdapterNotFound, match="'spam' has no alias 'prod'; the latest is v4"):
        store.resolve(TENANT, "spam", alias="prod")
    with pytest.raises(InvalidRequest, match="'latest' always exists"):
        store.remove_alias(TENANT, "spam", "latest")
    with pytest.raises(AdapterNotFound, match="has no version v9"):
        store.move_alias(TENANT, "spam", "prod", 9)
    with pytest.raises(AdapterNotFound, match="has no alias 'prod'"):
        store.rollback(TENANT, "spam", "prod")
    store.move_alias(TENANT, "spam", "canary", 2)
    with pytest.raises(InvalidRequest, match="never meant another version that is left"):
        store.rollback(TENANT, "spam", "canary")


def test_publishing_can_move_an_alias_too(store: AdapterStore) -> None:
    with pytest.raises(InvalidRequest, match="'v3' is no alias"):
        publish(store, "spam", alias="v3")
    first = publish(store, "spam", fill=b"a", alias="prod")[0]
    second = publish(store, "spam", fill=b"b")[0]
    assert store.resolve(TENANT, "spam", alias="prod") == first
    assert publish(store, "spam", fill=b"b", alias="prod") == (second, False)
    assert store.resolve(TENANT, "spam", alias="prod") == second


def test_what_was_read_of_another_state_moves_nothing(store: AdapterStore, another: Open) -> None:
    publish(store, "spam", fill=b"a")
    publish(store, "spam", fill=b"b")
    seen = store.describe(TENANT, "spam").pointers.revision
    another().annotate(TENANT, "spam", description="changed", tags=("a", "b"), revision=seen)
    for change in (
        lambda: store.move_alias(TENANT, "spam", "prod", 1, seen),
        lambda: store.rollback(TENANT, "spam", "latest", seen),
        lambda: store.annotate(TENANT, "spam", description="mine", revision=seen),
    ):
        with pytest.raises(RevisionConflict, match=f"is at revision {seen + 1}, not {seen}"):
            change()
    found = store.describe(TENANT, "spam")
    assert (found.pointers.description, found.pointers.tags, found.latest.number) == ("changed", ("a", "b"), 2)


def test_a_race_of_alias_moves_has_one_winner(store: AdapterStore, another: Open) -> None:
    race_alias_moves([store, another()], rounds=1)


def test_publishers_at_once_get_versions_of_their_own(store: AdapterStore, another: Open) -> None:
    servers, numbers = [store, another()], []

    def work(worker: int) -> None:
        mine = (publish(servers[worker % 2], "spam", fill=bytes([worker * 16 + turn]))[0] for turn in range(3))
        numbers.extend(version.number for version in mine)

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(set(numbers)) == 12
    assert {version.number for version in another().versions(TENANT, "spam")} == set(numbers)
    assert store.describe(TENANT, "spam").latest.number == max(numbers)


def test_one_version_is_deleted_unless_an_alias_means_it(store: AdapterStore, another: Open) -> None:
    first, second, third = (publish(store, "spam", fill=bytes([turn]))[0] for turn in range(3))
    store.move_alias(TENANT, "spam", "prod", 1)
    with pytest.raises(InvalidRequest, match="v1 of adapter 'spam' is what 'prod' means"):
        store.delete_version(TENANT, "spam", 1)
    store.delete_version(TENANT, "spam", 2)
    for reader in (store, another()):
        with pytest.raises(AdapterNotFound):
            reader.resolve(TENANT, "spam", number=2)
        with pytest.raises(AdapterNotFound):
            reader.resolve(TENANT, "spam", digest=second.digest)
        assert [version.number for version in reader.versions(TENANT, "spam")] == [3, 1]
    store.purge(TENANT, "spam")
    assert store.backend.manifest(Home(TENANT, "spam"), 2) is None
    assert [version.digest for version in another().versions(TENANT, "spam")] == [third.digest, first.digest]
    assert publish(store, "spam", fill=bytes([1]))[0].number == 4, "deleted bytes can be published again"
    store.remove_alias(TENANT, "spam", "prod")
    store.delete_version(TENANT, "spam", 1)
    pointers = read_pointers(another().backend, Home(TENANT, "spam"))
    assert (pointers.deleted_through, pointers.deleted, pointers.live()) == (2, (), [4, 3])


def test_a_deleted_name_is_gone_and_no_number_comes_twice(store: AdapterStore, another: Open) -> None:
    for fill in (b"a", b"b"):
        publish(store, "spam", fill=fill)
    store.annotate(TENANT, "spam", description="old")
    store.delete(TENANT, "spam")
    for reader in (store, another()):
        with pytest.raises(AdapterNotFound, match="there is no adapter 'spam'"):
            reader.resolve(TENANT, "spam")
        assert reader.list(TENANT) == []
    store.purge(TENANT, "spam")
    assert store.backend.numbers(Home(TENANT, "spam")) == []
    again = publish(another(), "spam", fill=b"a")[0]
    assert again.number == 3
    assert store.describe(TENANT, "spam").pointers.description == ""


def test_another_server_is_seen_when_trust_ends(another: Open) -> None:
    now = [1000.0]
    writer, reader = another(), AdapterStore(another().backend, clock=lambda: now[0])
    first = publish(writer, "spam", fill=b"a")[0]
    assert reader.resolve(TENANT, "spam").digest == first.digest
    second = publish(writer, "spam", fill=b"b")[0]
    assert reader.resolve(TENANT, "spam").digest == first.digest
    now[0] += TRUST_SECONDS
    assert reader.resolve(TENANT, "spam").digest == second.digest


def test_pages_follow_each_other_and_miss_nothing(store: AdapterStore) -> None:
    names = {"a", "a-b", "a.b", "a0", "ab", "b", "z"}
    for name in names:
        publish(store, name)
    publish(store, "other", tenant="acme")
    for turn in range(12):
        store.move_alias(TENANT, "a0", "prod" if turn % 2 else "test", 1)
        store.annotate(TENANT, "a0", description=str(turn))
    publish(store, "gone")
    store.delete(TENANT, "gone")
    for limit in (1, 2, 3, 100):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            page, after = store.page(TENANT, after, limit)
            assert len(page) <= limit
            found += [adapter.name for adapter in page]
        assert len(found) == len(names), "none comes twice"
        assert set(found) == names


def test_versions_that_nobody_finished_are_no_versions(store: AdapterStore, another: Open) -> None:
    publish(store, "spam", fill=b"a")
    home, backend = Home(TENANT, "spam"), store.backend
    if isinstance(backend, Bucket):
        backend._create(f"{home}/versions/000002/claim", b"x")
    else:
        (backend.root / "default/spam/versions/000002").mkdir()
        (backend.root / "default/spam/versions/000002/adapter_config.json").write_text("{}")
    assert [version.number for version in another().versions(TENANT, "spam")] == [1]
    with pytest.raises(AdapterNotFound):
        another().resolve(TENANT, "spam", number=2)
    made = publish(another(), "spam", fill=b"b")[0]
    assert another().resolve(TENANT, "spam").number == made.number


def test_a_version_whose_publisher_died_before_the_name_moved_is_pointed_to(store: AdapterStore, another: Open) -> None:
    publish(store, "spam", fill=b"a")
    store._point_or_remove = lambda home, number, manifest: None  # type: ignore[method-assign]
    publish(store, "spam", fill=b"b")
    assert another().resolve(TENANT, "spam").number == 1
    other = another()
    other.sweep()
    assert other.resolve(TENANT, "spam").number == 2
    assert read_pointers(other.backend, Home(TENANT, "spam")).latest == 2


def test_a_long_log_is_trimmed_and_stays_right(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.pointers.KEPT", 5)
    monkeypatch.setattr("server.store.pointers.TRIM_EVERY", 8)
    store = another()
    for turn in range(2):
        publish(store, "spam", fill=bytes([turn]))
    for turn in range(15):
        store.move_alias(TENANT, "spam", "prod", 1 + turn % 2)
    home = Home(TENANT, "spam")
    left = store.backend.revisions(home)
    assert left[0] == 17
    assert 5 <= len(left) < 10
    assert another().resolve(TENANT, "spam", alias="prod").number == 1
    assert another().rollback(TENANT, "spam", "prod").alias("prod") == 2


# What is a bucket's alone


@pytest.fixture
def bucket(moto_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterStore:
    for name, value in environment(moto_endpoint).items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/{secrets.token_hex(4)}"
    return open_store(url, cache=tmp_path / "cache", cache_bytes=5000)


def test_a_changed_object_is_never_served(bucket: AdapterStore) -> None:
    version = publish(bucket, "spam")[0]
    place = bucket.backend
    assert isinstance(place, Bucket)
    obstore.put(place._store, "default/spam/versions/000001/adapter_model.safetensors", b"something else")
    with pytest.raises(WaybillError, match="the adapter store was changed or damaged"):
        bucket.fetch(version)
    assert not version.folder.exists()


def test_the_cache_is_bounded_and_what_is_held_stays(bucket: AdapterStore) -> None:
    made = [publish(bucket, f"n{turn}", fill=bytes([turn]))[0] for turn in range(12)]
    cache = made[0].folder.parent
    bucket.backend.hold(made[0].digest)
    for version in made:
        bucket.fetch(version)
        assert version.tensors.is_file()
        assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= 5000 + made[0].num_bytes
    assert made[0].tensors.is_file()
    assert not made[1].tensors.exists()
    bucket.backend.release(made[0].digest)
    bucket.fetch(made[1])
    assert not made[0].folder.exists()
    assert not bucket.backend.is_fetched(made[0].digest)
    assert bucket.backend.is_fetched(made[1].digest)


def test_the_next_process_uses_a_cache_again_if_it_is_right(bucket: AdapterStore, tmp_path: Path) -> None:
    version = publish(bucket, "spam")[0]
    bucket.fetch(version)
    with pytest.raises(Unavailable, match="is another server's"):
        FileCache(tmp_path / "cache", 5000)
    brought: list[str] = []

    def bring(name: str, target: Path) -> None:
        brought.append(name)
        target.write_bytes((kept / name).read_bytes())

    kept = version.folder.rename(tmp_path / "kept")
    for damage, expected in ((False, []), (True, ["adapter_config.json", "adapter_model.safetensors"])):
        fresh = FileCache(tmp_path / f"fresh-{damage}", 5000)
        folder = fresh.folder(version.digest)
        folder.mkdir()
        for path in kept.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if damage:
            (folder / "adapter_config.json").write_text("{}")
        fresh.fill(version.digest, lambda: bucket.backend.manifest(Home(TENANT, "spam"), 1) or b"", bring)
        assert sorted(brought) == expected
        assert files_digest(folder) == version.digest


def test_an_unreachable_bucket_is_unavailable_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("server.store.bucket._RETRY", {"max_retries": 0})
    store = open_store("s3://nowhere", cache=tmp_path, cache_bytes=5000)
    with pytest.raises(Unavailable, match=r"^the adapter store cannot be reached$"):
        store.resolve(TENANT, "spam")
    assert "s3://nowhere" in caplog.text


@pytest.mark.parametrize("url", ["ftp://host/x", "https://example.com/x", "memory:///", "file:///tmp"])
def test_other_urls_are_no_stores(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a store is a folder, or a URL that begins with s3://"):
        open_store(url, cache=tmp_path, cache_bytes=5000)
