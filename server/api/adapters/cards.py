"""What is told of adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.core import AdapterKind
from server.formats.spec import AdapterSpec
from server.service.residency import Level, Residency
from server.store.store import Adapter
from server.store.version import Version


class VersionCard(BaseModel):
    """One version of an adapter. `version` and `created` are null for a dry run."""

    name: str
    tenant: str
    version: str | None
    digest: str
    kind: AdapterKind
    num_virtual_tokens: int
    bytes: int
    created: int | None
    template: str | None = None
    fields: list[str] | None = None
    tasks: list[str | int] | None = None
    warnings: list[str] | None = None


class ResidencyCard(BaseModel):
    """Where a version's nearest copy is on this server: `kv` is the engine's memory, where a request starts at once.

    `in_flight` requests hold it; `last_used` is in seconds since the epoch. A pinned version is evicted last of all.
    """

    version: str
    digest: str
    state: Level
    pinned: bool
    in_flight: int
    last_used: int | None = None


class AdapterCard(VersionCard):
    """An adapter at its latest version, with all that its name points to."""

    aliases: dict[str, str] = Field(description="Versions by alias; `latest` is what the bare name means.")
    revision: int = Field(description="Counts changes of the name; send it as `If-Match` to change what you have seen.")
    description: str
    tags: list[str]
    residency: ResidencyCard


class AdapterList(BaseModel):
    """A part of what a tenant can use. Send `last_id` as `after` for the next, which may be empty."""

    object: Literal["list"] = "list"
    data: list[AdapterCard]
    has_more: bool
    last_id: str | None = None


class VersionList(BaseModel):
    """An adapter's versions, the newest first."""

    object: Literal["list"] = "list"
    data: list[VersionCard]
    has_more: bool


class ParityCard(BaseModel):
    """How far an adapter's logits are, as the server computes them, from the base model's own, in the logits' unit."""

    name: str
    tenant: str
    version: str
    digest: str
    dtype: str = Field(description="What the base model is served in.")
    holds: bool = Field(description="Whether `error` is at most `allowed`: the two are the same but for rounding.")
    positions: int = Field(description="Rows of logits that were compared.")
    same_tokens: int = Field(description="Of these, rows with the same likeliest token.")
    largest_difference: float = Field(description="Of any logit.")
    standard_deviation: float = Field(description="Of the logits of a row.")
    error: float = Field(
        description="In float32 the largest difference; in other formats the median row's root mean square."
    )
    allowed: float


class AliasMove(BaseModel):
    """What an alias meant and means."""

    alias: str
    before: str | None
    version: str
    revision: int


def version_card(version: Version) -> VersionCard:
    """Return what is told of a version."""
    return VersionCard(
        **described(
            version.tenant,
            version.name,
            version.label,
            version.digest,
            version.created,
            version.num_bytes,
            version.spec,
        )
    )


def adapter_card(adapter: Adapter, residency: Residency) -> AdapterCard:
    """Return what is told of an adapter."""
    pointers = adapter.pointers
    return AdapterCard(
        **version_card(adapter.latest).model_dump(),
        aliases={alias: f"v{number}" for alias, number in pointers.aliases},
        revision=pointers.revision,
        description=pointers.description,
        tags=list(pointers.tags),
        residency=residency_card(adapter.latest, residency),
    )


def residency_card(version: Version, residency: Residency) -> ResidencyCard:
    """Return what is told of where a version is."""
    return ResidencyCard(
        version=version.label,
        digest=version.digest,
        state=residency.level,
        pinned=residency.pinned,
        in_flight=residency.in_flight,
        last_used=residency.last_used,
    )


def described(
    tenant: str, name: str, version: str | None, digest: str, created: int | None, num_bytes: int, spec: AdapterSpec
) -> dict[str, Any]:
    """Return a version card's fields."""
    names = {index: task for task, index in spec.tasks}
    return {
        "name": name,
        "tenant": tenant,
        "version": version,
        "digest": digest,
        "kind": spec.kind,
        "num_virtual_tokens": spec.num_virtual_tokens,
        "bytes": num_bytes,
        "created": created,
        "template": None if spec.template is None else spec.template.source,
        "fields": None if spec.template is None else list(spec.template.field_names),
        "tasks": [names.get(index, index) for index in range(spec.num_tasks)] or None,
        "warnings": list(spec.warnings) or None,
    }


def as_json(card: BaseModel) -> dict[str, Any]:
    """Return a card as JSON, without what is not there."""
    return card.model_dump(mode="json", exclude_none=True)
