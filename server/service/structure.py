"""What a text must match, judged and turned into the grammar that the engine takes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server.errors import InvalidRequest, Overloaded
from server.formats.strict_json import Malformed, shown
from server.grammar import load_llguidance, parser_limits
from server.service.exchange import GenerateCommand, Structure
from server.service.grammar_text import lark_of
from server.service.json_schema import read_schema

MAX_REGEX = 2_048
"""Characters."""

MAX_CHOICES = 256
MAX_CHOICE = 1_024
"""Characters of one choice."""

SECONDS = 5.0
"""How long reading a structure may take."""

OPTIONS = '%llguidance {"no_forcing": true}'
"""What stands before every grammar. Left to itself, llguidance follows text that allows one way to go on as far as that
leads, which in some grammars is for ever.
"""

JSON_OPTIONS = {"whitespace_pattern": "( |\\n {0,32})", "whitespace_flexible": True, "lenient": False}
"""Between the parts of JSON stands nothing, a blank, or a new line with an indent: no model goes on with that for ever.

A keyword that is not enforced is an error.
"""

REMEMBERED = 64
"""Structures that are kept as they were read, the latest used: requests come with the same ones again and again."""

MAX_SHOWN = 300
"""Characters of a reason."""


def check_beside(structure: Structure, command: GenerateCommand) -> None:
    """Refuse what contradicts a structure: the text ends where the structure does, at an end of sequence."""
    sampling = command.sampling
    asked = {
        "ignore_eos": sampling.ignore_eos,
        "min_tokens": sampling.min_tokens > 0,
        "stop_token_ids": bool(sampling.stop_token_ids),
        "max_tokens": command.max_tokens == 0,
    }
    for name in (name for name, given in asked.items() if given):
        raise InvalidRequest(f"{name} contradicts {structure.param}: such a text ends where it is whole", param=name)


def engine_grammar(structure: Structure) -> str:
    """Return the grammar as `SamplingParams.grammar` holds it. Raises InvalidRequest, naming `structure.param`.

    It takes milliseconds of one core: a StructureReader does it in a thread.
    """
    try:
        grammar = _grammar(structure)
    except (Malformed, ValueError) as error:
        raise InvalidRequest(f"{structure.param}: {str(error)[:MAX_SHOWN]}", param=structure.param) from error
    failed, findings = load_llguidance().LLMatcher.validate_grammar_with_warnings(grammar, limits=parser_limits())
    if failed or findings:  # it warns of what it would ignore
        reason = _reason(findings[0]) if findings else "it cannot be read"
        raise InvalidRequest(f"{structure.param}: {reason}", param=structure.param)
    return grammar


def _reason(finding: str) -> str:
    """Return what a finding of llguidance's says, without the picture of where."""
    lines = [line.strip() for line in finding.splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return ": ".join([lines[0].rstrip(": "), *errors])[:MAX_SHOWN]


def _grammar(structure: Structure) -> str:
    """Return Lark, wrapped so that no text of a client's is ever read as llguidance's own list of grammars."""
    match structure.kind:
        case "json_object":
            lark = _json({"type": "object"})
        case "json_schema":
            lark = _json(read_schema(structure.source))
        case "regex":
            lark = _regex(structure.source)
        case "choice":
            lark = _choices(structure.source)
        case "grammar":
            lark = lark_of(structure.source)
    return json.dumps({"grammars": [{"lark_grammar": f"{OPTIONS}\n{lark}"}]}, ensure_ascii=False)


def _json(schema: dict[str, Any]) -> str:
    return "start: %json " + json.dumps(schema | {"x-guidance": JSON_OPTIONS}, ensure_ascii=False)


def _regex(source: str) -> str:
    if len(source) > MAX_REGEX:
        raise Malformed(f"it has {len(source):,} characters, more than the {MAX_REGEX:,} allowed")
    made = json.loads(load_llguidance().LLMatcher.grammar_from_regex(source))  # which knows how Lark quotes them
    lark: str = made["grammars"][0]["lark_grammar"]
    return lark


def _choices(source: str) -> str:
    texts: list[str] = json.loads(source)
    if not 1 <= len(texts) <= MAX_CHOICES:
        raise Malformed(f"it has {len(texts):,} choices; 1 to {MAX_CHOICES} are allowed")
    for text in texts:
        if not 1 <= len(text) <= MAX_CHOICE:
            raise Malformed(f"the choice {shown(text)} has not 1 to {MAX_CHOICE:,} characters")
    # Lark's texts are written as JSON's, in which one control character more must be escaped.
    return "start: " + " | ".join(json.dumps(text).replace("\x7f", "\\u007f") for text in texts)


class StructureReader:
    """Reads structures one at a time, on a thread of its own, each within `seconds`. Those that come again it knows."""

    def __init__(self, read: Callable[[Structure], str] = engine_grammar, seconds: float = SECONDS) -> None:
        self._read = read
        self._seconds = seconds
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="structure")

    async def read(self, structure: Structure) -> str:
        """Return the grammar as `SamplingParams.grammar` holds it.

        Raises InvalidRequest, naming `structure.param`, for what is too large, malformed, not supported or too much
        work, and Overloaded where its turn does not come.
        """
        key = structure.kind, structure.source
        grammar = self._known.pop(key, None)
        if grammar is None:
            grammar = await self._fresh(structure)
        self._known[key] = grammar
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return grammar

    async def _fresh(self, structure: Structure) -> str:
        begun = threading.Event()

        def work() -> str:
            begun.set()
            return self._read(structure)

        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            if begun.is_set():
                raise InvalidRequest("it takes too long to read", param=structure.param) from None
            raise Overloaded("too many requests ask for structured output", param=structure.param) from None
