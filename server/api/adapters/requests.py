"""What the routes of adapters have in common: parameters, and states that a change is made for."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header, Query
from fastapi import Path as PathParameter

from server.errors import InvalidRequest
from server.formats.names import AdapterRef, check_name, select

Name = Annotated[str, PathParameter(max_length=200, description="The adapter's name alone.")]
VersionName = Annotated[
    str, PathParameter(max_length=80, description="A number (`3` or `v3`), an alias, or a digest (`sha256:…`).")
]
Chosen = Annotated[str, Query(max_length=80, description="A number (`3` or `v3`), an alias, or a digest.")]
Alias = Annotated[str, PathParameter(max_length=80, description="1 to 32 of a-z, 0-9 and `-`; not `v` and digits.")]
Owner = Annotated[
    str | None, Query(alias="tenant", max_length=80, description="Whose; yours, else the public one, where left out.")
]
IfMatch = Annotated[
    str | None,
    Header(max_length=64, description="The `ETag` that was seen: the change is refused (412) if another was made."),
]

_ETAG = re.compile(r'"(\d{1,12})"')


def revision_of(if_match: str | None) -> int | None:
    """Return the revision that an `If-Match` names; None where there is none, or `*`. Raises InvalidRequest."""
    if if_match is None or if_match.strip() == "*":
        return None
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        raise InvalidRequest('If-Match is the ETag of the adapter, such as "3"', param="If-Match")
    return int(match[1])


def etag(revision: int) -> dict[str, str]:
    """Return the header that names a state of an adapter's name."""
    return {"ETag": f'"{revision}"'}


def chosen(name: str, owner: str | None, version: str) -> AdapterRef:
    """Return the reference to one version. Raises InvalidRequest."""
    number = f"v{version}" if version.isascii() and version.isdigit() else version
    return select(check_name(name), owner, number, param="version")
