"""Publishing from a folder of this machine, without a server or an engine."""

from __future__ import annotations

import shutil
from pathlib import Path

from server.core import BaseModel
from server.errors import AdapterRejected
from server.formats.judge import AdapterLimits, judge_folder, require_known_file
from server.formats.names import check_name, check_tenant
from server.store.store import AdapterStore
from server.store.version import Version


def publish_folder(
    store: AdapterStore, folder: Path, tenant: str, name: str, base: BaseModel, limits: AdapterLimits
) -> tuple[Version, bool]:
    """Judge a copy of `folder` and make it the next version of `tenant`'s adapter `name`.

    Returns the version and whether it is new. Raises AdapterRejected, AdapterIncompatible, InvalidRequest, Unavailable.
    Values are not judged: that takes the model.
    """
    check_tenant(tenant, allow_public=True)
    check_name(name)
    with store.stage() as staging:
        for path in sorted(folder.iterdir()):
            require_known_file(path.name)
            if path.is_symlink() or not path.is_file():
                raise AdapterRejected(f"{path.name} is not a plain file")
            shutil.copyfile(path, staging.folder / path.name)
        spec = judge_folder(staging.folder, base, limits)
        return store.publish(tenant, name, staging.folder, spec)
