"""Prompts cut to their last tokens, with and without what the tokenizer adds; virtual tokens are never cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from server.errors import InvalidRequest
from server.formats.template import Field
from server.service.prompting import Prompter
from server.service.tokenizer import Tokenizer
from tests.prompting.folders import byte_level, sentence_piece_like
from tests.prompting.test_prompting import BASE, KV, MESSAGES, SOFT, literal, rows, templated

TEXT = "The quick brown fox jumps over the lazy dog <|end|> and 🙂 on."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_level(tmp_path_factory.mktemp("bos"), bos=True))


@pytest.fixture(scope="module")
def prompter(tokenizer: Tokenizer) -> Prompter:
    return Prompter(tokenizer, BASE)


@pytest.mark.parametrize("make", [lambda folder: byte_level(folder, bos=True), sentence_piece_like, byte_level])
@pytest.mark.parametrize("special", [True, False])
def test_ids_equal_those_of_transformers(tmp_path: Path, make, special: bool) -> None:  # type: ignore[no-untyped-def]
    folder = make(tmp_path)
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder, truncation_side="left")
    whole = theirs(TEXT, add_special_tokens=special)["input_ids"]
    assert list(ours.encode(TEXT, add_special_tokens=special)) == whole
    for last in (2, 5, len(whole) - 1, len(whole), len(whole) + 1):
        ids = theirs(TEXT, add_special_tokens=special, truncation=True, max_length=last)["input_ids"]
        assert list(ours.encode(TEXT, add_special_tokens=special, last=last)) == ids


def test_where_there_is_no_room_beside_what_is_added_the_text_stays(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(TEXT, last=1) == tokenizer.encode(TEXT)[-1:]


def test_ids_are_cut_from_the_left(prompter: Prompter) -> None:
    assert prompter.render(None, prompt=[5, 6, 7], last=2).tokens == (6, 7)
    assert prompter.render(None, prompt=[5, 6, 7], last=9).tokens == (5, 6, 7)


@pytest.mark.parametrize("spec", [SOFT, KV])
def test_virtual_tokens_before_the_prompt_stay(prompter: Prompter, spec) -> None:  # type: ignore[no-untyped-def]
    whole = prompter.render(spec, prompt=[5, 6, 7])
    cut = prompter.render(spec, prompt=[5, 6, 7], last=1)
    assert (cut.prefix_ids, cut.tokens, cut.num_text_tokens) == (whole.prefix_ids, (7,), 1)


@pytest.mark.parametrize("place", ["start", "before_last_user", "before_generation"])
def test_virtual_tokens_inside_a_chat_stay(prompter: Prompter, place: str) -> None:
    spec = replace(SOFT, chat=place)
    whole = prompter.render(spec, messages=MESSAGES)
    text = [token for token in whole.tokens if token < BASE.vocab_size]
    for last in (1, 6, 12, len(text), 500):
        cut = prompter.render(spec, messages=MESSAGES, last=last)
        assert [token for token in cut.tokens if token < BASE.vocab_size] == text[-last:]
        assert (*cut.prefix_ids, *(t for t in cut.tokens if t >= BASE.vocab_size)) == rows(0, 3)
        assert cut.num_text_tokens == min(last, len(text))
        tail = cut.tokens[-min(last, 5) :]
        assert tail == whole.tokens[len(whole.tokens) - len(tail) :]


def test_a_template_is_not_cut(prompter: Prompter) -> None:
    with pytest.raises(InvalidRequest, match="template") as caught:
        prompter.render(templated(Field("text")), prompt="x", last=5)
    assert caught.value.param == "truncate_prompt_tokens"


def test_a_text_may_begin_without_what_the_tokenizer_adds(tokenizer: Tokenizer, prompter: Prompter) -> None:
    assert prompter.render(None, prompt="fox").tokens == (1, *literal(tokenizer, "fox"))
    assert prompter.render(None, prompt="fox", add_special_tokens=False).tokens == literal(tokenizer, "fox")


def test_messages_may_end_before_the_assistants_turn(tokenizer: Tokenizer, prompter: Prompter) -> None:
    begun = literal(tokenizer, "<|turn|>assistant\n")
    for place in ("start", "before_last_user", "before_generation"):
        spec = replace(SOFT, chat=place)
        whole = prompter.render(spec, messages=MESSAGES)
        bare = prompter.render(spec, messages=MESSAGES, add_generation_prompt=False)
        assert (*bare.prefix_ids, *bare.tokens, *begun) == (*whole.prefix_ids, *whole.tokens)
