"""Deltas join to the whole text, tear no character, and show nothing of a stop string."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.service.detokenizer import Detokenizer
from server.service.tokenizer import Tokenizer
from tests.prompting.folders import byte_level, sentence_piece_like


class Bytes:
    """One token per byte; 256 is special, 257 is no text at all."""

    special_ids = frozenset({256})

    def __init__(self) -> None:
        self.longest = 0

    def decode_one(self, token: int) -> str:
        return self.decode([token])

    def decode(self, ids: list[int]) -> str:
        self.longest = max(self.longest, len(ids))
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_level(tmp_path_factory.mktemp("byte")))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(sentence_piece_like(tmp_path_factory.mktemp("piece")))


def run(detokenizer: Detokenizer, tokens: list[int] | tuple[int, ...]) -> list[str]:
    """The deltas, the last of them from `flush`."""
    deltas = []
    for token in tokens:
        deltas.append(detokenizer.push(token))
        if detokenizer.stopped is not None:
            break
    return [*deltas, detokenizer.flush()]


CHARACTERS = st.text(st.sampled_from("ab \n.é東🙂\u200d👩é"), max_size=30)


@settings(deadline=None, max_examples=200)
@given(CHARACTERS)
def test_text_comes_in_whole_characters(text: str) -> None:
    deltas = run(Detokenizer(Bytes()), list(text.encode()))
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)
    assert deltas[-1] == ""


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.integers(0, 257) | st.sampled_from([0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x99]), max_size=60)
)
def test_any_bytes_join_to_what_decoding_at_once_gives(tokens: list[int]) -> None:
    tokenizer = Bytes()
    deltas = run(Detokenizer(tokenizer), tokens)
    assert "".join(deltas) == tokenizer.decode([token for token in tokens if token != 256])


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_tokens_of_a_byte_level_vocabulary_join_to_the_whole(byte_pairs: Tokenizer, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, byte_pairs.vocab_size - 1), max_size=60))
    assert "".join(run(Detokenizer(byte_pairs), tokens)) == byte_pairs.decode(tokens)


@settings(deadline=None, max_examples=100)
@given(CHARACTERS)
def test_a_vocabulary_with_spaces_as_letters_joins_to_the_whole(pieces: Tokenizer, text: str) -> None:
    tokens = pieces.encode(text)
    deltas = run(Detokenizer(pieces), tokens)
    assert "".join(deltas) == pieces.decode(tokens)
    assert not any("\ufffd" in delta for delta in deltas)


def test_a_character_shows_as_soon_as_it_is_whole() -> None:
    detokenizer = Detokenizer(Bytes())
    assert [detokenizer.push(byte) for byte in "a🙂é".encode()] == ["a", "", "", "", "🙂", "", "é"]
    assert detokenizer.flush() == ""


def test_an_unfinished_character_shows_at_the_end() -> None:
    detokenizer = Detokenizer(Bytes())
    assert [detokenizer.push(byte) for byte in "a🙂".encode()[:-1]] == ["a", "", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_special_tokens_are_no_text() -> None:
    deltas = run(Detokenizer(Bytes()), [65, 256, 0xC3, 256, 0xA9, 256])
    assert deltas == ["A", "", "", "", "é", "", ""]


@pytest.mark.parametrize("tokens", [[65] * 3000, [0xFF] * 3000, [0xF0, 0x9F] * 1500, [257] * 3000, [256] * 3000])
def test_a_long_text_costs_no_more_per_token(tokens: list[int]) -> None:
    tokenizer = Bytes()
    deltas = run(Detokenizer(tokenizer, ["AB", "\ufffdA"]), tokens)
    assert tokenizer.longest < 40
    assert "".join(deltas) == tokenizer.decode([token for token in tokens if token != 256])


def expected(text: str, stops: list[str], *, include_stop: bool) -> tuple[str, str | None]:
    """What is left of a text: the stop string that is complete first ends it, the longest of several."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            stop = max(met, key=len)
            return (text[:end] if include_stop else text[: end - len(stop)]), stop
    return text, None


STOPS = st.lists(st.text("ab .é🙂", min_size=1, max_size=6), max_size=4)


@settings(deadline=None, max_examples=400)
@given(st.text("ab .é🙂", max_size=40), STOPS, st.booleans())
def test_a_stop_string_ends_the_text(text: str, stops: list[str], include_stop: bool) -> None:
    detokenizer = Detokenizer(Bytes(), stops, include_stop=include_stop)
    deltas = run(detokenizer, list(text.encode()))
    assert ("".join(deltas), detokenizer.stopped) == expected(text, stops, include_stop=include_stop)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_stop_strings_over_several_tokens_and_within_one(byte_pairs: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text("the quick.é🙂", max_size=60))
    stops = data.draw(st.lists(st.text("the quick.é🙂", min_size=1, max_size=5), max_size=3))
    stops += data.draw(st.lists(st.sampled_from(["the", "quick", "🙂🙂", " th"]), max_size=2))
    detokenizer = Detokenizer(byte_pairs, stops)
    deltas = run(detokenizer, byte_pairs.encode_run([(text, True)]).ids)
    assert ("".join(deltas), detokenizer.stopped) == expected(text, stops, include_stop=False)


@settings(deadline=None, max_examples=200)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_shown_before_it_is_ruled_out(text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(Bytes(), stops)
    shown = ""
    for number, byte in enumerate(text.encode(), start=1):
        shown += detokenizer.push(byte)
        if detokenizer.stopped is not None:
            return
        # Whatever comes next, what is shown stays a part of the text.
        for stop in stops:
            for start in range(number):
                if stop.startswith(text[start:number]):
                    assert len(shown) <= start
    assert shown + detokenizer.flush() == text


def test_text_is_held_back_no_longer_than_needed() -> None:
    detokenizer = Detokenizer(Bytes(), ["abc"])
    assert [detokenizer.push(byte) for byte in b"xabxaabd"] == ["x", "", "", "abx", "", "a", "", "abd"]


def test_nothing_is_held_back_of_a_stop_string_that_stays() -> None:
    detokenizer = Detokenizer(Bytes(), ["abc"], include_stop=True)
    assert [detokenizer.push(byte) for byte in b"xababcx"] == ["x", "a", "b", "a", "b", "c", ""]
    assert detokenizer.stopped == "abc"


def test_the_end_of_the_sequence_releases_what_is_held() -> None:
    detokenizer = Detokenizer(Bytes(), ["abc"])
    assert [detokenizer.push(byte) for byte in b"xab"] == ["x", "", ""]
    assert (detokenizer.flush(), detokenizer.stopped) == ("ab", None)


def test_a_stop_string_may_show_in_the_last_unfinished_text() -> None:
    detokenizer = Detokenizer(Bytes(), ["x\ufffd"])
    assert [detokenizer.push(byte) for byte in b"ax\xf0"] == ["a", "", ""]
    assert (detokenizer.flush(), detokenizer.stopped) == ("", "x\ufffd")


def test_the_longest_of_several_that_end_together_is_told() -> None:
    detokenizer = Detokenizer(Bytes(), ["c", "bc", "abc", ""])
    assert "".join(run(detokenizer, list(b"xabc"))) == "x"
    assert detokenizer.stopped == "abc"
    assert (detokenizer.push(65), detokenizer.flush()) == ("", "")


@pytest.mark.parametrize(
    ("min_tokens", "text"), [(0, ""), (1, "a"), (2, "ab"), (3, "aba"), (5, "ababa"), (6, "abababa"), (9, "abababa")]
)
def test_stop_strings_are_not_looked_for_in_the_first_tokens(min_tokens: int, text: str) -> None:
    detokenizer = Detokenizer(Bytes(), ["ab", "ba"], min_tokens=min_tokens)
    assert "".join(run(detokenizer, list(b"abababa"))) == text
    assert (detokenizer.stopped is None) == (min_tokens >= 6)


def test_random_text_through_the_real_vocabulary() -> None:
    tokenizer = Tokenizer(Path(__file__).parents[2] / "models" / "smollm2-135m")
    rng = random.Random(5)
    for _ in range(30):
        tokens = [rng.randrange(tokenizer.vocab_size) for _ in range(80)]
        assert "".join(run(Detokenizer(tokenizer, ["\n\n\n\n"]), tokens)) == tokenizer.decode(tokens)
    text = "Grüße aus 東京 🙂👩\u200d👩\u200d👧 — naïve 42\n" * 3
    deltas = run(Detokenizer(tokenizer), tokenizer.encode(text))
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)
