"""A prompt template: where virtual tokens, fixed text and the request's fields stand (P-Tuning, arXiv:2103.10385).

    {bos}{v:0-5}Review: {text}\\nSentiment:{v:6-9}

`{v:a-b}` is rows a to b of the adapter's table, `{v:a}` one row, `{bos}` the base model's BOS token, `{name}` a field,
`{{` and `}}` literal braces. Every row stands exactly once and in order, or no `{v}` stands at all; then the virtual
tokens come before everything, BOS included. Prefix KV knows only the second form. A field may stand more than once and
is filled alike; one field at least must stand, or nothing of a request would reach the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from server.core import AdapterKind
from server.errors import AdapterRejected
from server.formats.strict_json import shown

_MARKER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_ROWS = re.compile(r"v:([0-9]{1,9})(?:-([0-9]{1,9}))?")
_FIELD = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Rows:
    """Virtual tokens `first` to `last`, inclusive."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Literal:
    """Fixed text; special-token strings in it mean those tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class Bos:
    """The base model's beginning-of-sequence token."""


@dataclass(frozen=True, slots=True)
class Field:
    """A place that a request fills; what fills it is plain text, whatever it contains."""

    name: str


Piece = Rows | Literal | Bos | Field


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    source: str
    pieces: tuple[Piece, ...]

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields in order of first use."""
        return tuple(dict.fromkeys(piece.name for piece in self.pieces if isinstance(piece, Field)))

    @property
    def has_rows(self) -> bool:
        """Whether the template places virtual tokens itself."""
        return any(isinstance(piece, Rows) for piece in self.pieces)


def parse_template(source: str, num_virtual_tokens: int, kind: AdapterKind) -> Template:
    """Return the parsed template for a table of `num_virtual_tokens` rows.

    Raises AdapterRejected for a marker it does not know, a row that does not exist, stands twice, out of order or
    never, `{v}` in a prefix's template, and a template without a field.
    """
    pieces = _pieces(source, num_virtual_tokens)
    rows = [piece for piece in pieces if isinstance(piece, Rows)]
    if rows and kind.holds_kv:
        raise AdapterRejected(
            f"the template places virtual tokens, but a {kind.upper()} adapter holds keys and values, which stand "
            "before everything: leave {v:…} out"
        )
    if rows:
        _require_each_row_once(rows, num_virtual_tokens)
    if not any(isinstance(piece, Field) for piece in pieces):
        raise AdapterRejected("the template has no field: nothing of a request would reach the model")
    return Template(source, tuple(pieces))


def _pieces(source: str, num_virtual_tokens: int) -> list[Piece]:
    pieces: list[Piece] = []
    text, end = "", 0
    for match in _MARKER.finditer(source):
        text += source[end : match.start()]
        end = match.end()
        if match[0] in ("{{", "}}"):
            text += match[0][0]
            continue
        if match[1] is None:
            raise AdapterRejected(
                f"the template has a lone {match[0]!r} at character {match.start()}: write {match[0] * 2!r} for a brace"
            )
        if text:
            pieces.append(Literal(text))
            text = ""
        pieces.append(_marker(match[1], num_virtual_tokens))
    text += source[end:]
    if text:
        pieces.append(Literal(text))
    return pieces


def _marker(inside: str, num_virtual_tokens: int) -> Piece:
    if inside == "bos":
        return Bos()
    if rows := _ROWS.fullmatch(inside):
        first = int(rows[1])
        last = int(rows[2]) if rows[2] else first
        if first > last:
            raise AdapterRejected(f"the template's {{{inside}}} runs backwards: rows stand in order")
        if last >= num_virtual_tokens:
            raise AdapterRejected(
                f"the template names row {last}, but the table has {num_virtual_tokens} rows, "
                f"0 to {num_virtual_tokens - 1}"
            )
        return Rows(first, last)
    if inside == "v" or inside.startswith("v:"):
        raise AdapterRejected(f"the template's {{{inside}}} names no rows: write {{v:0}} or {{v:0-9}}")
    if _FIELD.fullmatch(inside):
        return Field(inside)
    raise AdapterRejected(
        f"the template's marker {shown(inside)} is not bos, v:rows or a field name of a-z, 0-9 and _ "
        "(at most 32, the first a letter)"
    )


def _require_each_row_once(rows: list[Rows], num_virtual_tokens: int) -> None:
    """The work is bounded by the table: the first row that stands twice ends it."""
    used = bytearray(num_virtual_tokens)
    for piece in rows:
        for row in range(piece.first, piece.last + 1):
            if used[row]:
                raise AdapterRejected(f"the template uses row {row} twice: every row stands exactly once")
            used[row] = 1
    if (missing := used.find(0)) >= 0:
        count = used.count(0)
        which = f"row {missing}" if count == 1 else f"{count} rows, the first of them row {missing}"
        raise AdapterRejected(
            f"the template never uses {which}: every row of the table stands exactly once, or no {{v:…}} at all"
        )
    for before, after in pairwise(rows):
        if after.first < before.last:
            raise AdapterRejected(
                f"the template's row {after.first} stands after row {before.last}: rows stand in order"
            )
