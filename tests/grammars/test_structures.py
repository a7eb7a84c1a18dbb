"""What clients may ask for is refused with a reason, or runs within bounds; nothing is taken and ignored."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from typing import Any

import pytest

from server.errors import InvalidRequest, Overloaded
from server.service.exchange import Structure
from server.service.structure import StructureReader
from tests.grammars.small import EOS, allowed, grammar, masks, start


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def rule_chain(length: int, body: str) -> str:
    rules = [f"r{number} ::= {body.format(next=f'r{number + 1}')}" for number in range(length)]
    return "\n".join(["root ::= r0", *rules, f'r{length} ::= "a"'])


REFUSED: dict[str, tuple[str, Any, str]] = {
    "regex: too long": ("regex", "a" * 2049, "2,048"),
    "regex: malformed": ("regex", "(a", "invalid regex"),
    "regex: look-ahead": ("regex", "a(?=b)", "look-around"),
    "regex: back reference": ("regex", "(a)\\1", "backreferences"),
    "regex: word boundary": ("regex", "\\ba", "lookarounds"),
    "choice: none": ("choice", [], "choices"),
    "choice: too many": ("choice", [str(n) for n in range(257)], "256"),
    "choice: empty": ("choice", ["a", ""], "1 to 1,024"),
    "choice: long": ("choice", ["a" * 1025], "1 to 1,024"),
    "grammar: too long": ("grammar", 'root ::= "a"' + " " * 16_384, "16,384"),
    "grammar: nesting bomb": ("grammar", "root ::= " + "(" * 4000 + '"a"' + ")" * 4000, "nested"),
    "grammar: many rules": ("grammar", rule_chain(600, "{next}"), "512 rules"),
    "grammar: exponential rules": ("grammar", rule_chain(60, "{next} {next}"), "too big"),
    "grammar: a rule twice": ("grammar", 'root ::= "a"\nroot ::= "b"', "twice"),
    "grammar: a rule that is not there": ("grammar", "root ::= item", "not found"),
    "grammar: no root": ("grammar", 'item ::= "a"', "root"),
    "grammar: no start": ("grammar", 'item: "a"', "start"),
    "grammar: half an escape": ("grammar", 'root ::= "\\', "GBNF"),
    "grammar: JSON schema inside": ("grammar", 'start: %json {"x-guidance": {"lenient": true}}', "%"),
    "grammar: options inside": ("grammar", '%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "%"),
    "grammar: a list of grammars": ("grammar", '{"grammars": [{"lark_grammar": "start: \\"a\\""}]}', "expecting"),
    "grammar: special token": ("grammar", 'start: <end> "a"', "<"),
    "grammar: token id": ("grammar", 'start: <[256]> "a"', "<"),
    "grammar: temperature of a rule": ("grammar", 'start: item\nitem[temperature=2]: "a"', "="),
    "grammar: lazy rule": ("grammar", "start: item\nitem[lazy]: /a+/", "options"),
    "grammar: negation, which breaks UTF-8": ("grammar", "start: A\nA: ~/a/", "~"),
    "grammar: parameters": ("grammar", 'start: item::1\nitem::_: "a"', "parameters"),
    "schema: not JSON": ("json_schema", "{", "not valid JSON"),
    "schema: not an object": ("json_schema", "[]", "not a JSON object"),
    "schema: a key twice": ("json_schema", '{"type": "string", "type": "integer"}', "twice"),
    "schema: not a number": ("json_schema", '{"minimum": NaN}', "not a JSON number"),
    "schema: too large": ("json_schema", {"description": "x" * 65_536}, "bytes"),
    "schema: nesting bomb of JSON": ("json_schema", '{"const":' + "[" * 30_000 + "]" * 30_000 + "}", "nested"),
    "schema: nested schemas": ("json_schema", nested(17), "nested deeper than 16"),
    "schema: many properties": ("json_schema", {"properties": {str(n): True for n in range(513)}}, "512 properties"),
    "schema: huge enum": ("json_schema", {"enum": list(range(2049))}, "2,048 values"),
    "schema: many refs": ("json_schema", {"anyOf": [{"$ref": "#/$defs/a"}] * 257, "$defs": {"a": True}}, "256"),
    "schema: remote ref": ("json_schema", {"$ref": "https://example.com/schema.json"}, "same schema"),
    "schema: file ref": ("json_schema", {"$ref": "file:///etc/passwd"}, "same schema"),
    "schema: base of refs": ("json_schema", {"$id": "https://example.com/", "$ref": "#"}, "'$id'"),
    "schema: ref to nothing": ("json_schema", {"$ref": "#/$defs/a"}, "$defs/a"),
    "schema: ref to itself beside more": ("json_schema", {"allOf": [{"$ref": "#"}, {"type": "object"}]}, "circular"),
    "schema: exponential allOf": (
        "json_schema",
        {"allOf": [{"anyOf": [{"type": "string", "pattern": f"{a}{n}.*"} for a in "abcdefgh"]} for n in range(12)]},
        "too large",
    ),
    "schema: huge minLength": ("json_schema", {"type": "string", "minLength": 10**9}, "10,000"),
    "schema: fractional maxItems": ("json_schema", {"type": "array", "maxItems": 1.5}, "maxItems"),
    "schema: huge multipleOf": ("json_schema", {"type": "integer", "multipleOf": 999_983}, "multipleOf"),
    "schema: multipleOf that multiply": (
        "json_schema",
        {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]},
        "multipleOf",
    ),
    "schema: long pattern": ("json_schema", {"type": "string", "pattern": "a" * 2049}, "pattern"),
    "schema: bad pattern": ("json_schema", {"type": "string", "pattern": "("}, "regex"),
    "schema: unknown format": ("json_schema", {"type": "string", "format": "postcode"}, "format"),
    "schema: unknown keyword": ("json_schema", {"type": "string", "minLenght": 3}, "'minLenght' is not supported"),
    "schema: keyword that is not enforced": ("json_schema", {"not": {"type": "string"}}, "'not' is not supported"),
    "schema: keyword of no draft in a property": (
        "json_schema",
        {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
        "'uniqueItems' is not supported",
    ),
    "schema: laxness asked for": ("json_schema", {"x-guidance": {"lenient": True}, "type": "string"}, "x-guidance"),
    "schema: laxness within": ("json_schema", {"items": {"x-guidance": {"lenient": True}}}, "x-guidance"),
    "schema: oneOf that overlaps": ("json_schema", {"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    "schema: impossible": ("json_schema", {"properties": {"a": False}, "required": ["a"], "type": "object"}, "nsatisf"),
    "schema: a text where a schema should stand": ("json_schema", {"items": "string"}, "where a schema should"),
}


@pytest.mark.parametrize(("kind", "source", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(kind: str, source: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        grammar(kind, source)
    assert refusal.value.param == "field"
    assert reason in refusal.value.message
    assert len(refusal.value.message) < 400


BOUNDED: dict[str, tuple[str, Any]] = {
    "regex: repetitions of repetitions": ("regex", "(a{1,1000}){1,1000}"),
    "regex: five of them": ("regex", "(((((ab?c?){1,50}d?){1,50}e?){1,50}f?){1,50}g?){1,50}"),
    "regex: catastrophic for backtracking": ("regex", "(a+)+b"),
    "regex: exponential automaton": ("regex", "(a|b)*a(a|b){200}"),
    "regex: many wildcards": ("regex", "(.*[aeiou].{3,30}[xyz].*){10}"),
    "regex: many letters": ("regex", "(\\p{L}|\\p{N}){1,1000}([\\p{Lu}\\p{Ll}]{3,9})+"),
    "grammar: left recursion": ("grammar", 'start: start "a" | "b"'),
    "grammar: recursion in a circle": ("grammar", 'root ::= a\na ::= b "x" | "y"\nb ::= a "z" | root'),
    "grammar: ambiguous": ("grammar", 'start: start start | "a" | ""'),
    "grammar: very ambiguous": ("grammar", 'start: start start start start | "a" | "b" | start start'),
    "grammar: a million times": ("grammar", 'start: "a"{1,1000000}'),
    "grammar: empty rules in a circle": ("grammar", rule_chain(50, "{next} {next} | root")),
    "grammar: no end": ("grammar", 'root ::= x | "b"\nx ::= "a" x'),
    "grammar: blanks that are text and are not": ("grammar", 'start: "a " "b " | " "\n%ignore / +/'),
    "grammar: a text behind a greedy one": ("grammar", 'start: A B\nA: /a+/\nB: "ab"'),
    "schema: deep ref recursion": ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#"}}}}),
    "schema: lists of lists without end": ("json_schema", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
    "schema: exponential refs": (
        "json_schema",
        {
            "$ref": "#/$defs/r0",
            "$defs": {f"r{n}": {"allOf": [{"$ref": f"#/$defs/r{n + 1}"}] * 2} for n in range(25)} | {"r25": True},
        },
    ),
    "schema: many alternatives": (
        "json_schema",
        {"anyOf": [{"type": "object", "properties": {f"p{n}": {"type": "string"}}} for n in range(500)]},
    ),
    "schema: every property may be left out": (
        "json_schema",
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(500)}},
    ),
    "schema: long texts": ("json_schema", {"type": "string", "minLength": 5_000, "maxLength": 10_000}),
    "schema: a pattern's exponential automaton": ("json_schema", {"type": "string", "pattern": "(a|b)*a(a|b){400}"}),
    "schema: the largest multipleOf": ("json_schema", {"type": "integer", "multipleOf": 9_973}),
    "schema: ref to itself": ("json_schema", {"$ref": "#"}),
}


@pytest.mark.parametrize(("kind", "source"), BOUNDED.values(), ids=BOUNDED)
def test_bounded(kind: str, source: Any) -> None:
    """It comes to an end, goes on for as long as it is asked to, or fails by itself for the work that it takes."""
    kept, rng = masks(), random.Random(3)
    outcome = start(kept, 1, grammar(kind, source))
    for _ in range(60):
        if outcome is not None:
            break
        mask = kept.take([1])[1]
        if isinstance(mask, InvalidRequest):
            outcome = mask
            break
        going = sorted(allowed(mask) - set(EOS))
        if not going:
            return
        kept.advance({1: rng.choice(going)})
    assert outcome is None or isinstance(outcome, InvalidRequest)


TAKEN: dict[str, dict[str, Any]] = {
    "annotations": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "D",
        "default": {"any": ["thing", {"not": 1}]},
        "examples": [{"x-guidance": 1}],
        "deprecated": True,
        "type": "string",
    },
    "names that are keywords": {
        "type": "object",
        "properties": {"not": {"type": "string"}, "if": {"const": {"not": 1}}},
    },
    "references": {"$defs": {"a": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/a"}},
    "older lists": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "string"}],
        "additionalItems": False,
    },
    "alternatives that differ": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
    "prices": {"type": "number", "multipleOf": 0.01, "minimum": 0},
    "sixteen levels": nested(15),
    "maps": {"type": "object", "patternProperties": {"^a": True}, "additionalProperties": {"type": "null"}},
}


@pytest.mark.parametrize("schema", TAKEN.values(), ids=TAKEN)
def test_taken(schema: dict[str, Any]) -> None:
    assert start(masks(), 1, grammar("json_schema", schema)) is None


async def test_what_comes_again_is_not_read_again() -> None:
    """The field that asked is no part of what was asked."""
    asked: list[str] = []

    def read(structure: Structure) -> str:
        asked.append(structure.source)
        return f"{structure.kind} {structure.source}"

    reader = StructureReader(read)
    sources = [str(number) for number in range(60)]
    for param in ("one", "two"):
        for source in sources:
            assert await reader.read(Structure("regex", source, param)) == f"regex {source}"
    assert asked == sources
    assert await reader.read(Structure("grammar", "1", "one")) == "grammar 1"
    for number in range(100, 200):
        await reader.read(Structure("regex", str(number), "one"))
    await reader.read(Structure("regex", "1", "one"))
    assert asked.count("1") == 3  # once as a grammar, and again once others had taken its place


async def test_who_takes_too_long_is_told_so_and_who_waits_for_them_may_come_again() -> None:
    release = threading.Event()

    def read(structure: Structure) -> str:
        release.wait(60)
        return json.dumps(structure.source)

    reader = StructureReader(read, seconds=0.05)
    try:
        slow, waiting = await asyncio.gather(
            reader.read(Structure("regex", "a", "slow")),
            reader.read(Structure("regex", "b", "waiting")),
            return_exceptions=True,
        )
    finally:
        release.set()
    assert isinstance(slow, InvalidRequest)
    assert slow.param == "slow"
    assert isinstance(waiting, Overloaded)
    assert await StructureReader(read).read(Structure("regex", "c", "later")) == '"c"'
