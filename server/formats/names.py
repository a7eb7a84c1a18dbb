"""Names of tenants and adapters, and references to adapters: `[tenant/]name[@v3 | @sha256:…]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.formats.strict_json import shown

PUBLIC_TENANT = "public"
"""The tenant whose adapters everyone can use; no key may name it."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER = re.compile(r"v([1-9][0-9]{0,5})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RULE = "1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A parsed reference. At most one of `number` and `digest` is set; neither means the latest version."""

    name: str
    tenant: str | None = None
    number: int | None = None
    digest: str | None = None

    def __str__(self) -> str:
        owner = f"{self.tenant}/" if self.tenant else ""
        chosen = f"@v{self.number}" if self.number else f"@{self.digest}" if self.digest else ""
        return f"{owner}{self.name}{chosen}"


def is_name(text: str) -> bool:
    """Whether this could be the name of a tenant or an adapter."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, *, param: str = "name") -> str:
    """Return an adapter's name unchanged. Raises InvalidRequest when it is none."""
    return _checked(name, "an adapter's name", param)


def check_tenant(tenant: str, *, param: str = "tenant", allow_public: bool = False) -> str:
    """Return a tenant's name unchanged. Raises InvalidRequest when it is none, or a reserved one."""
    if tenant == PUBLIC_TENANT and not allow_public:
        raise InvalidRequest(f"the tenant '{PUBLIC_TENANT}' is reserved: everyone can use its adapters", param=param)
    return _checked(tenant, "a tenant's name", param)


def parse_reference(text: str, *, param: str = "adapter") -> AdapterRef:
    """Return what `[tenant/]name[@v3 | @sha256:…]` refers to. Raises InvalidRequest, naming `param`."""
    path, at, selector = text.partition("@")
    tenant, slash, name = path.rpartition("/")
    if slash:
        check_tenant(tenant, param=param, allow_public=True)
    check_name(name, param=param)
    if not at:
        return AdapterRef(name, tenant or None)
    if number := _NUMBER.fullmatch(selector):
        return AdapterRef(name, tenant or None, number=int(number[1]))
    if _DIGEST.fullmatch(selector):
        return AdapterRef(name, tenant or None, digest=selector)
    raise InvalidRequest(
        f"{shown(selector)} is no version: after '@' comes a version (v3) or a digest (sha256: and 64 hex digits)",
        param=param,
    )


def _checked(text: str, what: str, param: str) -> str:
    if not is_name(text):
        raise InvalidRequest(f"{shown(text)} is not {what}: {_RULE}", param=param)
    return text
