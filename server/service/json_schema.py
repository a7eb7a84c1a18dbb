"""Which JSON schemas are taken: every keyword is one that is enforced, or one that only annotates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from server.formats.strict_json import Malformed, parse_object, shown

MAX_BYTES = 64 * 1024
MAX_NESTING = 48
"""Levels of JSON; a property takes two."""

MAX_DEPTH = 16
"""Schemas within schemas."""

MAX_PROPERTIES = 512
MAX_VALUES = 2_048
"""Of all `enum` together."""

MAX_REFS = 256
MAX_PATTERN = 2_048
"""Characters of one `pattern`."""

MAX_COUNT = 10_000
"""The largest `minItems`, `maxLength` and the like."""

MAX_PLACES = 12
MAX_MULTIPLE = 10_000
"""The least common multiple of all `multipleOf`, in units of their last decimal place: what they take to count with."""

ANNOTATIONS = frozenset(
    {
        "$comment", "$schema", "contentEncoding", "contentMediaType", "default", "deprecated", "description",
        "discriminator", "example", "examples", "readOnly", "title", "writeOnly",
    }
)  # fmt: skip
"""Keywords that say nothing about which values are valid, `discriminator` as OpenAPI has it among them."""

_ONE = frozenset({"additionalItems", "additionalProperties"})
_MANY = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
_COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
_VALUES = frozenset(
    {
        "const", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "maximum", "minimum", "multipleOf",
        "pattern", "required", "type",
    }
)  # fmt: skip

ENFORCED = _ONE | _MANY | _NAMED | _COUNTS | _VALUES | {"$ref", "items"}
"""Keywords that decide which values are valid. Not all can be had in every combination: llguidance says which."""


@dataclass(slots=True)
class _Seen:
    """What a schema has so far been found to hold."""

    properties: int = 0
    values: int = 0
    refs: int = 0
    multiple: Fraction | None = None
    places: int = 0


def read_schema(source: str) -> dict[str, Any]:
    """Return a schema that holds only what is known, within the bounds above. Raises Malformed with the reason."""
    schema = parse_object(source.encode("utf-8", "surrogatepass"), max_bytes=MAX_BYTES, max_depth=MAX_NESTING)
    seen = _Seen()
    pending: list[tuple[Any, int]] = [(schema, 1)]
    while pending:
        part, depth = pending.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            raise Malformed(f"{shown(part)} stands where a schema should")
        if depth > MAX_DEPTH:
            raise Malformed(f"its schemas are nested deeper than {MAX_DEPTH} levels")
        _check_keywords(part, seen)
        pending += [(inner, depth + 1) for inner in _inner(part)]
    return schema


def _check_keywords(schema: dict[str, Any], seen: _Seen) -> None:
    for key, value in schema.items():
        if key not in ENFORCED and key not in ANNOTATIONS:
            raise Malformed(f"the keyword {shown(key)} is not supported")
        if key in _NAMED and not isinstance(value, dict):
            raise Malformed(f"{key} is not an object")
        if key in _MANY and not isinstance(value, list):
            raise Malformed(f"{key} is not a list")
        if key in _COUNTS and not (type(value) is int and 0 <= value <= MAX_COUNT):
            raise Malformed(f"{key} is not an integer from 0 to {MAX_COUNT:,}")
        if key == "multipleOf":
            _count_multiple(value, seen)
        if key == "pattern" and not (isinstance(value, str) and len(value) <= MAX_PATTERN):
            raise Malformed(f"pattern is not a text of at most {MAX_PATTERN:,} characters")
    _count(schema, seen)


def _count(schema: dict[str, Any], seen: _Seen) -> None:
    """Add up what is bounded over the whole schema."""
    seen.properties += sum(len(schema.get(key, ())) for key in ("properties", "patternProperties"))
    if seen.properties > MAX_PROPERTIES:
        raise Malformed(f"it has more than {MAX_PROPERTIES} properties")
    if "enum" in schema:
        if not isinstance(schema["enum"], list):
            raise Malformed("enum is not a list")
        seen.values += len(schema["enum"])
        if seen.values > MAX_VALUES:
            raise Malformed(f"its enums have more than {MAX_VALUES:,} values")
    if "$ref" in schema:
        if not (isinstance(schema["$ref"], str) and schema["$ref"].startswith("#")):
            raise Malformed("$ref may only name a part of the same schema: it begins with '#'")
        seen.refs += 1
        if seen.refs > MAX_REFS:
            raise Malformed(f"it has more than {MAX_REFS} $ref")


def _count_multiple(value: Any, seen: _Seen) -> None:
    """Bound what `multipleOf` costs: `allOf` may join any of them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise Malformed("multipleOf is not a number above 0")
    exact = Decimal(str(value))
    this = Fraction(exact)
    seen.places = max(seen.places, -int(exact.as_tuple().exponent))
    before = seen.multiple or this
    seen.multiple = Fraction(math.lcm(before.numerator, this.numerator), math.gcd(before.denominator, this.denominator))
    if seen.places > MAX_PLACES or seen.multiple * 10**seen.places > MAX_MULTIPLE:
        raise Malformed(f"multipleOf asks for more than {MAX_MULTIPLE:,} steps to count with")


def _inner(schema: dict[str, Any]) -> Iterator[Any]:
    """Yield the schemas directly within this one."""
    for key in _ONE & schema.keys():
        yield schema[key]
    for key in _MANY & schema.keys():
        yield from schema[key]
    for key in _NAMED & schema.keys():
        yield from schema[key].values()
    if "items" in schema:  # older drafts have a list here
        yield from schema["items"] if isinstance(schema["items"], list) else (schema["items"],)
