"""A prompt template: where virtual tokens, fixed text and the request's fields stand (P-Tuning, arXiv:2103.10385).

    {bos}{v:0-5}Review: {text}\\nSentiment:{v:6-9}

`{v:a-b}` is rows a to b of the adapter's table, `{v:a}` one row, `{bos}` the base model's BOS token, `{name}` a field,
`{{` and `}}` literal braces. Every row stands exactly once and in order, or no `{v}` stands at all; then the virtual
tokens come before everything, BOS included.
"""

from __future__ import annotations

from dataclasses import dataclass


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
