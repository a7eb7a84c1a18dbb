"""20,000 adapters on a disk and on SeaweedFS: resolving, a page, a start, memory."""

from __future__ import annotations

import resource
import secrets
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.store.disk import Disk
from server.store.opening import local_store, open_store
from server.store.store import AdapterStore
from tests.long.recording import record
from tests.store.buckets import BUCKET, environment, seaweed
from tests.store.writing import publish

COUNT = 20_000
TENANT = "default"


def fill(store: AdapterStore) -> float:
    """Publish `COUNT` adapters; return the seconds that it took."""
    began = time.monotonic()
    with ThreadPoolExecutor(8) as workers:
        for _ in workers.map(lambda n: publish(store, f"a{n:05d}", fill=n.to_bytes(3, "big")), range(COUNT)):
            pass
    return time.monotonic() - began


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(opened: Any) -> dict[str, Any]:
    """Milliseconds, at the 99th percentile where there are many."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = opened()
    names = [f"a{secrets.randbelow(COUNT):05d}" for _ in range(1000)]
    cold = [timed(lambda name=name: store.resolve(TENANT, name)) for name in dict.fromkeys(names)]
    warm = [timed(lambda name=name: store.resolve(TENANT, name)) for name in list(dict.fromkeys(names))[-50:]]
    pages, after = [], ""
    for _ in range(10):
        began = time.perf_counter()
        page, after = store.page(TENANT, after, 100)
        pages.append((time.perf_counter() - began) * 1000)
        assert len(page) == 100
    start = timed(lambda: (opened(), store.sweep_staging()))
    count, after = 0, ""
    while after is not None:
        page, after = store.page(TENANT, after, 1000)
        count += len(page)
    assert count == COUNT
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {
        "resolve cold p99 ms": round(p99(cold), 2),
        "resolve warm p99 ms": round(p99(warm), 3),
        "page of 100 median ms": round(statistics.median(pages), 1),
        "page of 100 worst ms": round(max(pages), 1),
        "start ms": round(start, 1),
        "memory grown by a walk over all MiB": round(grown / 1024, 1),
    }
    return found


def require(found: dict[str, Any]) -> None:
    assert found["resolve warm p99 ms"] <= 5
    assert found["resolve cold p99 ms"] <= 100
    assert found["page of 100 worst ms"] <= 300
    assert found["start ms"] <= 5000
    assert found["memory grown by a walk over all MiB"] <= 300


def test_twenty_thousand_on_a_disk(tmp_path: Path) -> None:
    store = local_store(tmp_path / "store")
    seconds = fill(store)
    found = measure(lambda: local_store(tmp_path / "store"))
    assert isinstance(store.backend, Disk)
    found["sweep of all s, beside the traffic"] = round(
        timed(lambda: local_store(tmp_path / "store").sweep()) / 1000, 1
    )
    record("store_scale", {"disk": {"adapters": COUNT, "published a second": round(COUNT / seconds), **found}})
    require(found)


def test_twenty_thousand_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weed").mkdir()
    with seaweed(tmp_path / "weed") as endpoint:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)

        def opened() -> AdapterStore:
            return open_store(f"s3://{BUCKET}/store", cache=tmp_path / secrets.token_hex(4), cache_bytes=10**8)

        seconds = fill(opened())
        found = measure(opened)
    record("store_scale", {"SeaweedFS": {"adapters": COUNT, "published a second": round(COUNT / seconds), **found}})
    require(found)
