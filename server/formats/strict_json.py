"""Read JSON that a stranger wrote: bounded in size and depth, and without the freedoms that parsers disagree on."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
MAX_SHOWN = 80
"""Characters of a stranger's text that a message repeats."""


class Malformed(ValueError):
    """A file is not what its name says; the message gives the reason and does not name the file."""


def parse_object(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Return the JSON object in `data` (UTF-8).

    Raises Malformed for anything but one object: over `max_bytes`, deeper than `max_depth` levels, a key twice in one
    object, NaN or infinity (also by overflow), or text that is not valid Unicode.
    """
    if len(data) > max_bytes:
        raise Malformed(f"it has {len(data):,} bytes, more than the {max_bytes:,} allowed")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except Malformed:
        raise
    except UnicodeDecodeError as error:
        raise Malformed("it is not UTF-8 text") from error
    except RecursionError as error:
        raise Malformed(f"it is nested deeper than {max_depth} levels") from error
    except ValueError as error:  # json.JSONDecodeError, and integers of thousands of digits
        raise Malformed(f"it is not valid JSON ({error})") from error
    _walk(value, 1, max_depth)
    if not isinstance(value, dict):
        raise Malformed("it is not a JSON object")
    return value


def shown(value: object) -> str:
    """Return a short, printable form of a value for a message."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"the key {shown(twice)} stands twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Malformed(f"the number {shown(text)} is too large")
    return value


def _walk(value: Any, depth: int, max_depth: int) -> None:
    """Refuse deep nesting, and lone surrogates, which no file or message can carry."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise Malformed("it holds half of a surrogate pair")
    elif isinstance(value, dict | list):
        if depth > max_depth:
            raise Malformed(f"it is nested deeper than {max_depth} levels")
        for item in value if isinstance(value, list) else (*value.keys(), *value.values()):
            _walk(item, depth + 1, max_depth)
