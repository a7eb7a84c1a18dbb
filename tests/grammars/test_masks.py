"""Masks against brute force: after every prefix, exactly the tokens are allowed with which some whole text begins."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from server.errors import InvalidRequest
from tests.grammars.small import EOS, VOCABULARY, accepts, allowed, grammar, masks, start, words

PIXEL = {
    "type": "object",
    "properties": {"x": {"enum": [1, 12, 120]}, "on": {"type": "boolean"}},
    "required": ["x", "on"],
    "additionalProperties": False,
}
GAPS = ["", " ", *("\n" + " " * indent for indent in range(33))]


def pixels(gaps: list[str]) -> set[str]:
    """All texts of `PIXEL` whose first gaps are of these; what follows the number is tight."""
    values = itertools.product(gaps, gaps, gaps, (1, 12, 120), ("true", "false"))
    return {f'{{{a}"x"{b}:{c}{x},"on":{on}}}' for a, b, c, x, on in values}


TEXTS = ["ab", "abc", "b", "é\n", 'say "x"\\', "\x7f\x01"]
PAIRS = [parts for count in (1, 2, 3) for parts in itertools.product(("ab", "ba"), repeat=count)]

CASES: list[tuple[str, str, Any, set[str]]] = [
    ("choice", "choice", TEXTS, set(TEXTS)),
    ("choice outside the first plane", "choice", ["😀", "😁a"], {"😀", "😁a"}),
    ("regex", "regex", "(ab|ba){1,3}c?", {"".join(parts) + end for parts in PAIRS for end in ("", "c")}),
    ("regex with anchors", "regex", "^a/b?\\.$", {"a/.", "a/b."}),
    ("regex of many bytes", "regex", "[é-ë]{2}", {a + b for a in "éêë" for b in "éêë"}),
    ("GBNF", "grammar", 'root ::= item ("," item)? # at most two\nitem ::= "a" [1-2] | "ab"\n', {
        ",".join(items) for n in (1, 2) for items in itertools.product(("a1", "a2", "ab"), repeat=n)
    }),
    ("Lark", "grammar", 'start: pair~1..2 END?\npair: "a" /[bc]/ // two\nEND: ";"', {
        "".join(pairs) + end for n in (1, 2) for pairs in itertools.product(("ab", "ac"), repeat=n) for end in ("", ";")
    }),
    ("JSON schema, tight", "json_schema", {"enum": [True, None, 12, "ab"]}, {
        "true", "null", "12", '"ab"'
    }),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "source", "language"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mask_allows_what_begins_a_text_and_nothing_else(kind: str, source: Any, language: set[str]) -> None:
    texts = {text.encode() for text in language}
    written = grammar(kind, source)
    for seed in range(12):
        reached = walk(written, texts, random.Random(seed))
        assert reached in texts


def walk(written: str, texts: set[bytes], rng: random.Random) -> bytes:
    """Draw allowed tokens at random to the end, comparing every mask on the way; return the text."""
    kept = masks()
    assert start(kept, 1, written) is None
    text = b""
    while True:
        found = allowed(kept.take([1])[1])
        expected = {
            token for token, word in words().items() if any(whole.startswith(text + word) for whole in texts)
        } | (set(EOS) if text in texts else set())
        assert found == expected, text
        token = rng.choice(sorted(found))
        if token in EOS:
            return text
        text += words()[token]
        kept.advance({1: token})


def test_json_has_room_for_a_blank_or_an_indented_line_and_no_more() -> None:
    written = grammar("json_schema", PIXEL)
    for text in random.Random(0).sample(sorted(pixels(GAPS)), 40):
        assert accepts(written, text), text
    for gap in ("  ", "\n\n", "\t", " \n", "\n" + " " * 33):
        assert not accepts(written, f'{{{gap}"x":1,"on":true}}'), gap


def test_special_tokens_and_ids_beyond_the_tokenizer_are_never_allowed() -> None:
    kept = masks()
    assert start(kept, 1, grammar("regex", "(?s:.)*")) is None
    for _ in range(3):
        found = allowed(kept.take([1])[1])
        assert found - set(EOS) == set(words()) - {token for token in words() if not utf8_begins(words()[token])}
        assert max(found) < max(words()) + 1 < VOCABULARY
        kept.advance({1: ord("a")})


def utf8_begins(word: bytes) -> bool:
    """Whether valid UTF-8 may begin with these bytes."""
    return any(
        valid(word + tail) for tail in (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")
    )


def valid(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_every_sequence_has_its_own_place() -> None:
    """Many at once, some of which pause and some of which are forgotten while their masks are being made."""
    kept, rng = masks(), random.Random(5)
    texts = {b"abcab", b"abab", b"b", b"ba12"}
    written = grammar("choice", [text.decode() for text in texts])
    said = dict.fromkeys(range(40), b"")
    for sequence in said:
        assert start(kept, sequence, written) is None
    ended: set[bytes] = set()
    while said:
        going = rng.sample(sorted(said), k=max(1, len(said) * 2 // 3))
        found = kept.take(said)
        drawn: dict[int, int] = {}
        for sequence in going:
            token = rng.choice(sorted(allowed(found[sequence])))
            if token in EOS:
                ended.add(said.pop(sequence))
                kept.forget(sequence)
            else:
                drawn[sequence] = token
                said[sequence] += words()[token]
        kept.advance(drawn)
        if drawn and rng.random() < 0.1:
            gone = rng.choice(sorted(drawn))
            del said[gone]
            kept.forget(gone)
    assert ended == texts
    assert len(kept) == 0
    assert kept.take(range(40)) == {}


def test_a_grammar_that_comes_again_starts_again() -> None:
    """Also after so many others that it was read anew."""
    kept, written = masks(), grammar("regex", "(?s:ab?)")
    begins = {token for token, word in words().items() if word in (b"a", b"ab")}
    assert kept.known(written) is None
    for sequence in range(3):
        assert start(kept, sequence, written) is None
        at_once = kept.known(written)
        assert at_once is not None
        assert allowed(at_once.mask) == begins
        assert allowed(kept.take([sequence])[sequence]) == begins
        kept.advance({sequence: ord("a")})
        for other in range(70 * sequence):
            assert start(kept, 100 + other, grammar("choice", [str(other)])) is None
    after = kept.take(range(3))
    assert [allowed(after[sequence]) for sequence in range(3)] == [{ord("b"), *EOS}] * 3


def test_a_sequence_without_a_grammar_has_no_mask() -> None:
    kept = masks()
    assert start(kept, 1, grammar("regex", "a+")) is None
    kept.advance({1: ord("a"), 2: 7})
    assert set(kept.take([1, 2, 3])) == {1}


def test_a_token_that_was_forbidden_ends_in_an_error_of_that_sequence_alone() -> None:
    kept = masks()
    for sequence in (1, 2):
        assert start(kept, sequence, grammar("regex", "ab+")) is None
    kept.advance({1: ord("x"), 2: ord("a")})
    found = kept.take([1, 2])
    assert isinstance(found[1], InvalidRequest)
    assert allowed(found[2]) == {ord("b")}
    kept.advance({1: ord("b"), 2: ord("b")})
    assert isinstance(kept.take([1])[1], InvalidRequest)


@pytest.mark.parametrize(
    "source",
    ["[^\\s\\S]", "a[^\\s\\S]"],
)
def test_a_grammar_of_no_text_is_refused(source: str) -> None:
    refusal = start(masks(), 1, grammar("regex", source))
    assert isinstance(refusal, InvalidRequest)
    assert refusal.message == "no text matches the grammar"


def test_what_cannot_be_read_is_refused() -> None:
    refusal = start(masks(), 1, json.dumps({"grammars": [{"lark_grammar": "start: ("}]}))
    assert isinstance(refusal, InvalidRequest)
