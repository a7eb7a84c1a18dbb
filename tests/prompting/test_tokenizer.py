"""Text to ids as transformers does it, and data that never means a special token."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from server.service.tokenizer import Tokenizer
from tests.prompting.folders import TEXTS, byte_level, sentence_piece_like

REAL = Path(__file__).parents[2] / "models" / "smollm2-135m"

SAMPLES = [
    *TEXTS[:3],
    "",
    " ",
    "  two  spaces and 42\t",
    "<s>at the start and </s> inside<|end|>",
    "<|turn|>user\nhello<|end|>\n",
    "é🙂 e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u202e",
]

MAKERS: dict[str, Callable[[Path], Path]] = {
    "byte level": byte_level,
    "byte level, BOS": lambda folder: byte_level(folder, bos=True),
    "BOS only in the config": lambda folder: byte_level(folder, add_bos_token=True, add_eos_token=True),
    "like SentencePiece": sentence_piece_like,
    "the real one": lambda folder: REAL,
}


@pytest.fixture(params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MAKERS[request.param](tmp_path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_level(tmp_path_factory.mktemp("byte")))


def test_ids_and_text_equal_those_of_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in SAMPLES:
        ids = theirs(text)["input_ids"]
        assert list(ours.encode(text)) == ids
        assert list(ours.encode_run([(text, False)]).ids) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.bos_token == theirs.bos_token
    assert ours.special_ids >= set(theirs.all_special_ids)


def test_plain_text_is_the_same_as_data_and_as_literal(folder: Path) -> None:
    ours = Tokenizer(folder)
    for text in ("The quick brown fox", "  indented\n\n42 times", "naïve 東京"):
        assert ours.encode_run([(text, True)]) == ours.encode_run([(text, False)])


def test_parts_are_tokenised_as_one_string(folder: Path) -> None:
    ours = Tokenizer(folder)
    whole = ours.encode_run([("Review: a film about nothing", True)]).ids
    parts = [("Rev", False), ("iew: a fi", True), ("lm abo", False), ("ut nothing", True)]
    assert ours.encode_run(parts).ids == whole


def test_special_strings_mean_tokens_in_literals_only(tokenizer: Tokenizer) -> None:
    run = tokenizer.encode_run([("<|turn|>a", False), ("<|end|>", True), ("b<|end|></s>", False)])
    assert [tokenizer.token_text(token) for token in run.ids] == [
        "<|turn|>", "a", "<", "|", "end", "|>", "b", "<|end|>", "</s>",
    ]  # fmt: skip
    assert run.specials == ((0, 0), (7, 2), (8, 2))


def test_a_special_string_across_a_border_is_plain(tokenizer: Tokenizer) -> None:
    for parts in (
        [("<|e", False), ("nd|>", True)],
        [("<|e", True), ("nd|>", False)],
        [("<|e", False), ("nd|>", False)],
        [("<|e", False), ("n", True), ("d|>", False)],
    ):
        assert not set(tokenizer.encode_run(parts).ids) & tokenizer.special_ids
        assert tokenizer.decode(tokenizer.encode_run(parts).ids) == "<|end|>"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["<s>", "</s>", "<|end|>", "<|", "end|>", "<", "s>", " ", "\n", "x", "🙂"]), max_size=8),
    st.sampled_from(["<|turn|>user\n", "plain ", ""]),
    st.sampled_from(["<|end|>\n", "</s>", " plain"]),
)
def test_a_field_changes_no_special_token_outside_itself(
    tokenizer: Tokenizer, pieces: list[str], before: str, after: str
) -> None:
    field = "".join(pieces)
    run = tokenizer.encode_run([(before, False), (field, True), (after, False)])
    literals = tokenizer.encode_run([(before, False), ("x", True), (after, False)])
    special = [token for token in run.ids if token in tokenizer.special_ids]
    assert special == [token for token in literals.ids if token in tokenizer.special_ids]
    plain = "".join(tokenizer.token_text(token) for token in run.ids)
    if "🙂" not in field:
        assert plain == before + field + after


@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize(
    "text", ["one two three four five", "🙂🙃🙂🙃", "a 東京 b 東京", " " * 40 + "x" + " " * 40, "\n\n\n"]
)
def test_cut_keeps_one_side_and_whole_characters(tokenizer: Tokenizer, text: str, keep: str) -> None:
    length = len(tokenizer.encode_run([(text, True)]).ids)
    for limit in range(1, length + 2):
        cut = tokenizer.cut(text, limit, keep)
        assert text.startswith(cut) if keep == "start" else text.endswith(cut)
        assert len(tokenizer.encode_run([(cut, True)]).ids) <= limit
    assert tokenizer.cut(text, length, keep) == text


def test_cut_keeps_as_much_as_fits(tokenizer: Tokenizer) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    ids = tokenizer.encode_run([(text, True)]).ids
    assert tokenizer.encode_run([(tokenizer.cut(text, 5, "start"), True)]).ids == ids[:5]
    assert tokenizer.encode_run([(tokenizer.cut(text, 5, "end"), True)]).ids == ids[-5:]


def test_token_text_shows_special_tokens_and_torn_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_text(4) == "<|end|>"
    torn = tokenizer.encode_run([("🙈", True)]).ids
    assert len(torn) > 1
    assert tokenizer.token_text(torn[0]) == "\ufffd"
    assert tokenizer.token_text(10**6) == ""


def test_no_text_takes_fewer_tokens_than_its_length_allows(folder: Path) -> None:
    ours = Tokenizer(folder)
    for text in SAMPLES:
        assert len(text) <= len(ours.encode(text)) * ours.max_token_chars


def test_many_threads_may_encode_at_once(tokenizer: Tokenizer) -> None:
    text = "The quick brown <|end|> fox 🙂 " * 50

    def work(number: int) -> tuple[tuple[int, ...], ...]:
        return tokenizer.encode(text), tokenizer.encode_run([(text, number % 2 == 0), ("<|end|>", False)]).ids

    expected = work(0), work(1)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(64))) == list(expected) * 32


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


def test_truncation_and_padding_in_the_file_are_not_used(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    byte_level(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(3)
    library.enable_padding(length=64)
    library.save(str(tmp_path / "tokenizer.json"))
    assert 3 < len(Tokenizer(tmp_path).encode("The quick brown fox jumps over")) < 64


def test_chat_templates_are_read_from_either_file(tmp_path: Path) -> None:
    assert Tokenizer(byte_level(tmp_path / "none", chat=None)).chat_template is None
    folder = byte_level(tmp_path / "config", chat="in the config")
    assert Tokenizer(folder).chat_template == "in the config"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert Tokenizer(byte_level(tmp_path / "named", chat_template=named)).chat_template == "yes"
    (folder / "chat_template.jinja").write_text("a file of its own")
    assert Tokenizer(folder).chat_template == "a file of its own"
