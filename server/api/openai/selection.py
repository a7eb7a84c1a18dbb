"""Which model answers: what `model` and `adapter` mean together, and how errors name the one that was sent."""

from __future__ import annotations

from dataclasses import dataclass

from server.errors import AdapterNotFound, InvalidRequest, ModelNotFound, WaybillError
from server.formats.names import parse_reference
from server.service.adapters import AdapterService
from server.service.tenants import Tenant

PLACEHOLDERS = ("tgi", "dummy")
"""What Hugging Face's clients send as `model` where they know the server by its URL alone: the base model, unless an
adapter has that name."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The adapter that answers, None for the base model. `model` is what was sent where that chose it, else None."""

    adapter: str | None
    model: str | None = None


async def select(
    adapters: AdapterService, tenant: Tenant, base: str, *, model: str | None, adapter: str | None
) -> Selection:
    """Return what a body with these two fields asks for; `base` is the base model's name.

    Raises ModelNotFound for a `model` that can name nothing, InvalidRequest where the two contradict each other.
    """
    named = None if model is None else adapter_of(model, base)
    if named in PLACEHOLDERS and named == model and not await _exists(adapters, tenant, named):
        named = None
    if named is None:
        return Selection(adapter)
    if adapter is not None and adapter != named:
        raise InvalidRequest("adapter names another adapter than model does; send one of them", param="adapter")
    return Selection(named, model)


def adapter_of(model: str, base: str) -> str | None:
    """Return the adapter's reference that `model` is or holds (`base:adapter`), None for the base model itself.

    Raises ModelNotFound where it is no reference.
    """
    if model == base:
        return None
    reference = model.removeprefix(f"{base}:")
    try:
        parse_reference(reference)
    except InvalidRequest:
        raise _unknown(model) from None
    return reference


def reraised(error: WaybillError, model: str | None) -> WaybillError:
    """Return the error as it is told where `model` chose the adapter: it speaks of that field."""
    if model is None:
        return error
    if isinstance(error, AdapterNotFound):
        return _unknown(model)
    if error.param == "adapter":
        error.param = "model"
    return error


async def _exists(adapters: AdapterService, tenant: Tenant, reference: str) -> bool:
    try:
        await adapters.get(tenant, reference)
    except AdapterNotFound:
        return False
    return True


def _unknown(model: str) -> ModelNotFound:
    return ModelNotFound(f"there is no model {model[:200]!r}", param="model")
