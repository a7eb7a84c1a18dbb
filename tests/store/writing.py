"""Publish hand-made adapters: `publish(store, "spam", fill=b"a")` differs from another `fill` in its bytes only."""

from __future__ import annotations

from server.core import AdapterKind
from server.formats.judge import judge_folder
from server.store.store import AdapterStore
from server.store.version import Version
from tests.formats.folders import BASE, make_folder

TENANT = "default"


def publish(
    store: AdapterStore,
    name: str,
    *,
    fill: bytes = b"\x3d",
    tenant: str = TENANT,
    kind: AdapterKind = AdapterKind.PROMPT_TUNING,
    sidecar: dict[str, object] | None = None,
    alias: str | None = None,
) -> tuple[Version, bool]:
    """Stage, judge and publish as the service does."""
    with store.stage() as staging:
        make_folder(staging.folder, kind, fill=fill, sidecar=sidecar)
        spec = judge_folder(staging.folder, BASE)
        return store.publish(tenant, name, staging.folder, spec, alias=alias)


def traces(store: AdapterStore) -> set[str]:
    """Every path of the store but the staging folder itself."""
    return {str(path.relative_to(store.backend.root)) for path in store.backend.root.rglob("*")} - {".staging"}
