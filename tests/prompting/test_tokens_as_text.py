"""Single tokens: their bytes, their places in a text, and texts that show special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.service.detokenizer import Detokenizer
from server.service.tokenizer import Tokenizer
from tests.prompting.folders import byte_level, sentence_piece_like
from tests.prompting.test_detokenizer import run
from tests.prompting.test_tokenizer import REAL

TEXTS = st.text(st.sampled_from("ab .é東🙂\u200d👩"), min_size=1, max_size=20)


@pytest.fixture(scope="module", params=["byte level", "like SentencePiece", "the real one"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    makers = {"byte level": byte_level, "like SentencePiece": sentence_piece_like}
    make = makers.get(request.param)
    return Tokenizer(REAL if make is None else make(tmp_path_factory.mktemp("folder")))


def plain(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tokenizer.encode(text, add_special_tokens=False)


@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    joined = b"".join(tokenizer.token_bytes(token) for token in plain(tokenizer, text))
    # A vocabulary that writes spaces as letters puts one before the text.
    assert joined.decode() in (text, f" {text}")


def test_a_special_tokens_bytes_are_its_name(tokenizer: Tokenizer) -> None:
    for token in tokenizer.special_ids:
        assert tokenizer.token_bytes(token).decode() in tokenizer.special_tokens


def test_every_token_has_bytes_that_its_text_shows(tokenizer: Tokenizer) -> None:
    for token in range(tokenizer.vocab_size):
        shown = tokenizer.token_bytes(token).decode("utf-8", "replace")
        assert shown.strip() == tokenizer.token_text(token).strip(), tokenizer.piece(token)


def test_tokens_are_found_in_the_text(tokenizer: Tokenizer) -> None:
    text = "The quick 🙂 fox"
    located = tokenizer.locate(text)
    assert tuple(token for token, _, _ in located) == tokenizer.encode(text)
    covered = {place for _, start, end in located for place in range(start, end)}
    assert covered == set(range(len(text)))


def specials_and_text(tokenizer: Tokenizer) -> tuple[int, ...]:
    special = sorted(tokenizer.special_ids)
    return (special[1], *plain(tokenizer, "The é🙂 fox"), special[2], *plain(tokenizer, "and"), special[1], special[2])


def test_special_tokens_show_in_a_stream_as_in_the_whole(tokenizer: Tokenizer) -> None:
    tokens = specials_and_text(tokenizer)
    deltas = run(Detokenizer(tokenizer.special_shown), tokens)
    assert "".join(deltas) == tokenizer.special_shown.decode(tokens)
    names = sorted(tokenizer.special_ids)
    assert deltas[0] == tokenizer.token_text(names[1])
    hidden = "".join(run(Detokenizer(tokenizer), tokens))
    assert not any(name in hidden for name in tokenizer.special_tokens)


@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.one_of(TEXTS, st.integers(0, 2)), max_size=8))
def test_text_and_special_tokens_shown_join_to_the_whole(tokenizer: Tokenizer, parts: list[str | int]) -> None:
    special = sorted(tokenizer.special_ids)
    tokens = [t for part in parts for t in (plain(tokenizer, part) if isinstance(part, str) else (special[part],))]
    assert "".join(run(Detokenizer(tokenizer.special_shown), tokens)) == tokenizer.special_shown.decode(tokens)


def test_a_special_token_may_be_a_stop_string(tokenizer: Tokenizer) -> None:
    name = tokenizer.token_text(max(tokenizer.special_ids))
    tokens = (*plain(tokenizer, "and"), max(tokenizer.special_ids), *plain(tokenizer, "fox"))
    detokenizer = Detokenizer(tokenizer.special_shown, [name])
    assert name not in "".join(run(detokenizer, tokens))
    assert detokenizer.stopped == name


def test_texts_decode_with_special_tokens_by_name(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level(tmp_path))
    ids = tokenizer.encode("<s>The fox<|end|>")
    assert tokenizer.decode_all(ids) == "<s>The fox<|end|>"
    assert tokenizer.decode(ids) == "The fox"
