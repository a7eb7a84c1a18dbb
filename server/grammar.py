"""What a grammar may cost, in whichever process reads it; and llguidance, where it is installed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from server.errors import InvalidRequest

if TYPE_CHECKING:
    import llguidance

BUILD_FUEL = 250_000
"""Regex nodes made when a grammar is read; some 100 ms of one core."""

STEP_FUEL = 100_000
"""Regex nodes made for one token's mask; some 10 ms."""

STEP_ITEMS = 25_000
"""Parser items made for one token's mask; some 2 ms."""

ROW_ITEMS = 300
"""Parser items at one place of a text: how ambiguous a grammar may be. Work grows with their square."""

LEXER_STATES = 16_000
"""Regex states that one sequence may come to hold, of about a kilobyte each."""

GRAMMAR_SYMBOLS = 50_000
"""Symbols of the whole grammar, references and repetitions written out."""


def load_llguidance() -> ModuleType:
    """Return the library, which is loaded when the first client asks for structure.

    Raises InvalidRequest where it is not installed: such a machine serves everything else.
    """
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise InvalidRequest("this server has no llguidance, which structured output needs") from None


def parser_limits() -> llguidance.LLParserLimits:
    """Return the limits above as llguidance takes them. Its errors do not quote the text or the grammar."""
    made: llguidance.LLParserLimits = load_llguidance().LLParserLimits(
        max_items_in_row=ROW_ITEMS,
        initial_lexer_fuel=BUILD_FUEL,
        step_lexer_fuel=STEP_FUEL,
        step_max_items=STEP_ITEMS,
        max_lexer_states=LEXER_STATES,
        max_grammar_size=GRAMMAR_SYMBOLS,
        verbose_errors=False,
    )
    return made
