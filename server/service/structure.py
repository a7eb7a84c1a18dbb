"""What a text must match, judged and turned into the grammar that the engine takes."""

from __future__ import annotations

import json

from server.errors import InvalidRequest
from server.service.exchange import Structure


def engine_grammar(structure: Structure) -> str:
    """Return the grammar as `SamplingParams.grammar` holds it.

    It takes milliseconds of one core: call it in a thread. Raises InvalidRequest, naming `structure.param`, for what is
    too large, malformed or not supported.
    """
    import llguidance  # here, so that a server whose clients ask for no structure does not load it

    try:
        if structure.kind == "json_object":
            return llguidance.LLMatcher.grammar_from_json_schema({"type": "object"})
        if structure.kind == "json_schema":
            return llguidance.LLMatcher.grammar_from_json_schema(structure.source)
        if structure.kind == "choice":
            choices = " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(structure.source))
            return llguidance.LLMatcher.grammar_from_lark(f"start: {choices}")
        return llguidance.grammar_from("regex" if structure.kind == "regex" else "grammar", structure.source)
    except ValueError as error:
        raise InvalidRequest(f"{structure.param} cannot be read: {error}", param=structure.param) from error
