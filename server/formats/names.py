"""Names of tenants, adapters and aliases, and references to adapters: `[tenant/]name[@v3 | @alias | @sha256:…]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.formats.strict_json import shown

LATEST = "latest"
"""The alias that a bare name means; every publish moves it."""

PUBLIC_TENANT = "public"
"""The tenant whose adapters everyone can use; no key may name it."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER = re.compile(r"v([1-9][0-9]{0,5})")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")
_LIKE_A_NUMBER = re.compile(r"v[0-9]+")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RULE = "1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A parsed reference. At most one of `number` and `digest` is set; where neither is, `alias` says which."""

    name: str
    tenant: str | None = None
    number: int | None = None
    digest: str | None = None
    alias: str = LATEST

    @property
    def chooses(self) -> bool:
        """Whether it says more than a name."""
        return self.number is not None or self.digest is not None or self.alias != LATEST

    def __str__(self) -> str:
        owner = f"{self.tenant}/" if self.tenant else ""
        chosen = f"v{self.number}" if self.number else self.digest or self.alias
        return f"{owner}{self.name}" + (f"@{chosen}" if self.chooses else "")


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


def check_alias(alias: str, *, param: str = "alias") -> str:
    """Return an alias unchanged. Raises InvalidRequest when it is none."""
    if _ALIAS.fullmatch(alias) is None or _LIKE_A_NUMBER.fullmatch(alias):
        raise InvalidRequest(
            f"{shown(alias)} is no alias: 1 to 32 of a-z, 0-9 and '-', the first a letter, and not v with digits",
            param=param,
        )
    return alias


def parse_reference(text: str, *, param: str = "adapter") -> AdapterRef:
    """Return what `[tenant/]name[@v3 | @alias | @sha256:…]` refers to. Raises InvalidRequest, naming `param`."""
    path, at, selector = text.partition("@")
    tenant, slash, name = path.rpartition("/")
    if slash:
        check_tenant(tenant, param=param, allow_public=True)
    check_name(name, param=param)
    return select(name, tenant or None, selector if at else LATEST, param=param)


def select(name: str, tenant: str | None, selector: str, *, param: str) -> AdapterRef:
    """Return the reference to what a selector, as it stands behind an `@`, means. Raises InvalidRequest."""
    if number := _NUMBER.fullmatch(selector):
        return AdapterRef(name, tenant, number=int(number[1]))
    if _DIGEST.fullmatch(selector):
        return AdapterRef(name, tenant, digest=selector)
    if _ALIAS.fullmatch(selector) and not _LIKE_A_NUMBER.fullmatch(selector):
        return AdapterRef(name, tenant, alias=selector)
    raise InvalidRequest(
        f"{shown(selector)} is no version: after '@' comes a version (v3), an alias, or a digest (sha256: and 64 hex "
        "digits)",
        param=param,
    )


def _checked(text: str, what: str, param: str) -> str:
    if not is_name(text):
        raise InvalidRequest(f"{shown(text)} is not {what}: {_RULE}", param=param)
    return text
