"""Which grammars are taken: GBNF, as llama.cpp and vLLM have it, or the context-free part of Lark."""

from __future__ import annotations

import re

from server.formats.strict_json import Malformed, shown
from server.grammar import load_llguidance

MAX_CHARS = 16_384
MAX_RULES = 512
MAX_NESTING = 32
"""Brackets within brackets."""

_GBNF = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*')
"""What in GBNF is not notation: texts, sets of characters, comments."""

_RULE = re.compile(r"([\w-]+)[ \t]*::=")

_LARK = re.compile(r'"(?:\\.|[^"\\\n])*"i?|(?://|#)[^\n]*|/(?![/*])(?:\\.|[^/\\\n])+/[imslux]*')
"""What in Lark is not notation: texts, comments, regular expressions."""

_NOTATION = re.compile(
    r"[!?]?[a-zA-Z_][a-zA-Z0-9_-]*(?:\.[0-9]+)?|%(?:ignore|import)\b|[+-]?[0-9]+|~\s*(?=[0-9])|->|\.\.|[:|()\[\]{},.+*?&\s]"
)
"""What of Lark's notation is taken. Without a part here: special tokens, `%json`, options of llguidance's own."""

_OPTIONS = re.compile(r"\]\s*:")


def lark_of(source: str) -> str:
    """Return a grammar as Lark, which llguidance reads. It is taken as GBNF where `::=` stands in it.

    Raises Malformed with the reason; what is wrong within this notation is left to llguidance.
    """
    if len(source) > MAX_CHARS:
        raise Malformed(f"it has {len(source):,} characters, more than the {MAX_CHARS:,} allowed")
    notation = _GBNF.sub('""', source)
    if "::=" in notation:
        _check_bounds(notation, notation.count("::="))
        names = _RULE.findall(notation)
        if len(set(names)) < len(names):
            raise Malformed("a rule is defined twice")
        return _converted(source)
    notation = _LARK.sub('""', source)
    _check_bounds(notation, notation.count(":"))
    rest = _NOTATION.sub("", notation.replace('""', ""))
    if "::" in notation:
        raise Malformed("rules with parameters are not supported")
    if rest:
        raise Malformed(f"{shown(rest[0])} stands where this kind of Lark has nothing like it")
    if _OPTIONS.search(notation):
        raise Malformed("options of rules, in brackets before the colon, are not supported")
    return source


def _check_bounds(notation: str, rules: int) -> None:
    if rules > MAX_RULES:
        raise Malformed(f"it has more than {MAX_RULES} rules")
    depth = 0
    for char in notation:
        depth += (char in "([{") - (char in ")]}")
        if depth > MAX_NESTING:
            raise Malformed(f"its brackets are nested deeper than {MAX_NESTING} levels")


def _converted(source: str) -> str:
    load_llguidance()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(source)
    except (RecursionError, IndexError):
        raise Malformed("it is not GBNF") from None
    except Exception as error:  # the library raises a bare Exception
        raise Malformed(f"it is not GBNF: {error}") from error
