"""Take values of a known type out of parsed JSON. Every function raises Malformed, naming the key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.formats.strict_json import Malformed, shown


def integer(source: dict[str, Any], key: str, low: int, high: int) -> int | None:
    """Return an integer in [low, high], or None where the key is absent or null. A bool is no integer."""
    value = source.get(key)
    if value is None:
        return None
    if type(value) is not int:
        raise Malformed(f"{key} is {shown(value)}, not an integer")
    if not low <= value <= high:
        raise Malformed(f"{key} is {shown(value)}; it must lie between {low} and {high}")
    return value


def text(source: dict[str, Any], key: str, max_length: int) -> str | None:
    """Return a string, or None where the key is absent or null."""
    value = source.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Malformed(f"{key} is {shown(value)}, not text")
    if len(value) > max_length:
        raise Malformed(f"{key} has {len(value)} characters, more than {max_length}")
    return value


def choice(source: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str | None:
    """Return one of `allowed`, or None where the key is absent or null."""
    value = source.get(key)
    if value is not None and value not in allowed:
        raise Malformed(f"{key} is {shown(value)}; it is one of {', '.join(allowed)}")
    return value if isinstance(value, str) else None


def mapping(source: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object, empty where the key is absent or null."""
    value = source.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{key} is {shown(value)}, not an object")
    return value


def only_keys(source: dict[str, Any], allowed: Iterable[str], what: str) -> None:
    """Refuse keys outside `allowed`."""
    known = tuple(allowed)
    for key in source:
        if key not in known:
            raise Malformed(f"{what} has no key {shown(key)}; it has {', '.join(known)}")
