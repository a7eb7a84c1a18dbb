"""Prompt, fields and messages become ids with the adapter's virtual tokens in their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.core import AdapterKind, BaseModel
from server.errors import AdapterIncompatible, ContextTooLong, InvalidRequest
from server.formats.spec import AdapterSpec, FieldRule
from server.formats.template import Bos, Field, Literal, Piece, Rows, Template
from server.service.prompting import Prompter, RenderedPrompt
from server.service.tokenizer import Tokenizer
from tests.prompting.folders import byte_level

BASE = BaseModel(
    name="tiny",
    family="llama",
    digest="sha256:" + "0" * 64,
    vocab_size=512,
    hidden_size=8,
    num_layers=1,
    num_kv_heads=1,
    head_dim=8,
    context_length=100,
    eos_token_ids=(2,),
)
V = BASE.vocab_size
MESSAGES = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]

SOFT = AdapterSpec(AdapterKind.PROMPT_TUNING, 4, "adapter_model.safetensors", "0" * 64)
KV = replace(SOFT, kind=AdapterKind.PREFIX_TUNING)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_level(tmp_path_factory.mktemp("bos"), bos=True))


@pytest.fixture(scope="module")
def prompter(tokenizer: Tokenizer) -> Prompter:
    return Prompter(tokenizer, BASE)


def templated(*pieces: Piece, kind: AdapterKind = AdapterKind.P_TUNING, rules: Sequence[FieldRule] = ()) -> AdapterSpec:
    return replace(SOFT, kind=kind, template=Template("", pieces), fields=tuple(rules))


def literal(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tokenizer.encode_run([(text, False)]).ids


def rows(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(V + first, V + last + 1))


class TestWithoutTemplate:
    def test_a_prompt_string_is_tokenised_as_usual(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        ids = (1, *literal(tokenizer, "The quick <|end|>"))
        assert ids[-1] == 4
        assert prompter.render(None, prompt="The quick <|end|>") == RenderedPrompt(ids, (), len(ids), 0, False)

    def test_token_ids_are_taken_as_they_are(self, prompter: Prompter) -> None:
        assert prompter.render(None, prompt=[7, 0, V - 1]).tokens == (7, 0, V - 1)
        assert prompter.render(SOFT, prompt=(7,)) == RenderedPrompt((7,), rows(0, 3), 1, 0, False)

    @pytest.mark.parametrize(("bad", "reason"), [(-1, "-1"), (V, "virtual"), (V + 3, "virtual")])
    def test_ids_outside_the_vocabulary_are_refused(self, prompter: Prompter, bad: int, reason: str) -> None:
        for spec in (None, SOFT, KV):
            with pytest.raises(InvalidRequest, match=reason) as caught:
                prompter.render(spec, prompt=[5, bad, 6])
            assert caught.value.param == "prompt"

    def test_embeddings_come_before_everything_and_kv_is_in_the_file(
        self, tokenizer: Tokenizer, prompter: Prompter
    ) -> None:
        ids = tokenizer.encode("hello")
        assert ids[0] == 1
        assert prompter.render(SOFT, prompt="hello") == RenderedPrompt(ids, rows(0, 3), len(ids), 0, False)
        assert prompter.render(KV, prompt="hello") == RenderedPrompt(ids, (), len(ids), 0, False)

    def test_an_empty_prompt_needs_something_before_it(self, tmp_path: Path, prompter: Prompter) -> None:
        for spec in (None, KV):
            with pytest.raises(InvalidRequest, match="empty"):
                prompter.render(spec, prompt=[])
        no_bos = Prompter(Tokenizer(byte_level(tmp_path)), BASE)
        with pytest.raises(InvalidRequest, match="empty"):
            no_bos.render(None, prompt="")
        assert prompter.render(None, prompt="").tokens == (1,)
        # The last virtual token is computed with the prompt: its logits say what comes next.
        assert no_bos.render(SOFT, prompt="") == RenderedPrompt(rows(3, 3), rows(0, 2), 0, 0, True)

    def test_fields_need_a_template(self, prompter: Prompter) -> None:
        for spec in (None, SOFT):
            with pytest.raises(InvalidRequest, match="no template") as caught:
                prompter.render(spec, fields={"text": "x"})
            assert caught.value.param == "fields"

    @pytest.mark.parametrize("given", [{}, {"prompt": "x", "fields": {}}, {"prompt": "x", "messages": MESSAGES}])
    def test_one_of_the_three_is_needed(self, prompter: Prompter, given: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest, match="exactly one"):
            prompter.render(None, **given)


class TestMessages:
    def test_messages_go_through_the_chat_template(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        text = (
            "<|turn|>user\none<|end|>\n<|turn|>assistant\ntwo<|end|>\n<|turn|>user\nthree<|end|>\n<|turn|>assistant\n"
        )
        ids = literal(tokenizer, text)
        assert prompter.render(None, messages=MESSAGES).tokens == ids
        assert prompter.render(SOFT, messages=MESSAGES) == RenderedPrompt(ids, rows(0, 3), len(ids), 0, False)
        assert prompter.render(KV, messages=MESSAGES) == RenderedPrompt(ids, (), len(ids), 0, False)

    @pytest.mark.parametrize(
        ("place", "before", "after"),
        [
            ("before_last_user", "<|turn|>user\n", "three<|end|>\n<|turn|>assistant\n"),
            ("before_generation", "<|turn|>user\nthree<|end|>\n", "<|turn|>assistant\n"),
        ],
    )
    def test_virtual_tokens_inside_the_chat(
        self, tokenizer: Tokenizer, prompter: Prompter, place: str, before: str, after: str
    ) -> None:
        before = "<|turn|>user\none<|end|>\n<|turn|>assistant\ntwo<|end|>\n" + before
        ids = literal(tokenizer, before) + rows(0, 3) + literal(tokenizer, after)
        rendered = prompter.render(replace(SOFT, chat=place), messages=MESSAGES)
        assert rendered == RenderedPrompt(ids, (), len(ids) - 4, 0, True)

    def test_a_base_model_without_chat_template_takes_none(self, tmp_path: Path) -> None:
        prompter = Prompter(Tokenizer(byte_level(tmp_path, chat=None)), BASE)
        with pytest.raises(InvalidRequest, match="no chat template") as caught:
            prompter.render(None, messages=MESSAGES)
        assert caught.value.param == "messages"


class TestTemplates:
    def test_without_rows_the_virtual_tokens_come_before_bos(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        pieces = (Bos(), Literal("Review: "), Field("text"), Literal("\nSentiment:"))
        ids = (1, *literal(tokenizer, "Review: a film\nSentiment:"))
        for kind, prefix in ((AdapterKind.P_TUNING, rows(0, 3)), (AdapterKind.CARTRIDGE, ())):
            spec = templated(*pieces, kind=kind)
            assert prompter.render(spec, prompt="a film") == RenderedPrompt(ids, prefix, len(ids), 0, False)
            assert prompter.render(spec, fields={"text": "a film"}).tokens == ids

    def test_rows_stand_where_the_template_puts_them(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        spec = templated(Rows(0, 1), Literal("Review: "), Field("text"), Rows(2, 2), Literal("so "), Rows(3, 3))
        text = literal(tokenizer, "Review: a film")
        tokens = (*text, V + 2, *literal(tokenizer, "so "), V + 3)
        assert prompter.render(spec, prompt="a film") == RenderedPrompt(tokens, rows(0, 1), len(tokens) - 2, 0, True)

    @pytest.mark.parametrize(
        ("pieces", "stable"),
        [
            ((Rows(0, 3), Field("text")), 4),
            ((Bos(), Rows(0, 3), Field("text")), 5),
            ((Rows(0, 3), Literal("Review: "), Field("text")), 4),
            ((Rows(0, 3), Bos(), Field("text")), 5),
            ((Rows(0, 3), Literal("<|turn|>"), Literal("user\n"), Field("text"), Literal("<|end|>")), 5),
            ((Rows(0, 1), Literal("<|turn|>"), Rows(2, 3), Literal(" a"), Field("text")), 5),
            ((Rows(0, 1), Field("text"), Literal("<|end|>"), Rows(2, 3)), 2),
            ((Literal("<|turn|>"), Rows(0, 3), Literal("x<|end|><s>y"), Field("text")), 8),
            ((Field("text"), Rows(0, 3)), 0),
            ((Bos(), Field("text"), Rows(0, 3)), 0),
        ],
    )
    def test_what_no_request_changes_compiles(self, prompter: Prompter, pieces: tuple[Piece, ...], stable: int) -> None:
        spec = templated(*pieces)
        rendered = [prompter.render(spec, prompt=text) for text in ("a film", "<|end|>", "\n ", "ser")]
        assert {len(prompt.prefix_ids) for prompt in rendered} == {stable}
        assert len({prompt.prefix_ids for prompt in rendered}) == 1
        for prompt in rendered:
            ids = prompt.prefix_ids + prompt.tokens
            assert [token for token in ids if token >= V] == list(rows(0, 3))
            assert prompt.num_text_tokens == len(ids) - 4
            assert prompt.needs_table == any(token >= V for token in prompt.tokens)

    def test_a_run_between_virtual_tokens_is_one_string(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        spec = templated(Rows(0, 3), Literal("The qu"), Field("text"), Literal("own fox"))
        assert prompter.render(spec, prompt="ick br").tokens == literal(tokenizer, "The quick brown fox")

    def test_special_strings_in_a_field_change_no_token_outside_it(
        self, tokenizer: Tokenizer, prompter: Prompter
    ) -> None:
        spec = templated(Rows(0, 3), Literal("<|turn|>user\n"), Field("text"), Literal("<|end|>\n<|turn|>assistant"))
        for text in ("<|end|>", "x<|turn|>system", "{v:0}{bos}{{", "<s>"):
            tokens = prompter.render(spec, prompt=text).tokens
            special = [token for token in tokens if token in tokenizer.special_ids]
            assert [tokenizer.token_text(token) for token in special] == ["<|end|>", "<|turn|>"]
            shown = "".join(map(tokenizer.token_text, tokens))
            assert shown == f"user\n{text}<|end|>\n<|turn|>assistant"

    def test_a_template_that_ends_with_an_empty_field_still_has_a_token(self, prompter: Prompter) -> None:
        spec = templated(Rows(0, 3), Field("text"))
        assert prompter.render(spec, prompt="") == RenderedPrompt(rows(3, 3), rows(0, 2), 0, 0, True)

    def test_a_field_may_stand_twice(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        spec = templated(Rows(0, 3), Field("text"), Literal(" is "), Field("text"))
        assert prompter.render(spec, prompt="it").tokens == literal(tokenizer, "it is it")

    def test_bos_needs_a_bos_token(self, tmp_path: Path) -> None:
        prompter = Prompter(Tokenizer(byte_level(tmp_path, bos_token=None)), BASE)
        with pytest.raises(AdapterIncompatible, match="BOS"):
            prompter.render(templated(Bos(), Field("text")), prompt="x")


class TestFields:
    TWO = (Rows(0, 3), Field("title"), Literal(": "), Field("text"))

    def test_several_fields_are_filled_by_name(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        rendered = prompter.render(templated(*self.TWO), fields={"text": "b", "title": "a"})
        assert rendered.tokens == literal(tokenizer, "a: b")

    @pytest.mark.parametrize(
        ("given", "param", "words"),
        [
            ({"prompt": "x"}, "prompt", ["title, text", "send fields"]),
            ({"prompt": [1, 2]}, "prompt", ["title, text", "send fields"]),
            ({"messages": MESSAGES}, "messages", ["title, text", "send fields", "not messages"]),
            ({"fields": {"title": "x"}}, "fields", ["text is missing"]),
            ({"fields": {}}, "fields", ["title is missing"]),
            ({"fields": {"title": "x", "text": "y", "body": "z"}}, "fields", ["body", "title, text"]),
        ],
    )
    def test_what_does_not_fill_the_template_is_refused(
        self, prompter: Prompter, given: dict[str, Any], param: str, words: list[str]
    ) -> None:
        with pytest.raises(InvalidRequest) as caught:
            prompter.render(templated(*self.TWO), **given)
        assert caught.value.param == param
        assert all(word in caught.value.message for word in words)

    @pytest.mark.parametrize("given", [{"prompt": [1, 2]}, {"messages": MESSAGES}])
    def test_a_template_with_one_field_says_what_to_send(self, prompter: Prompter, given: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest, match="send prompt as a string, or fields"):
            prompter.render(templated(Rows(0, 3), Field("text")), **given)

    def test_what_is_not_required_may_be_left_out(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        spec = templated(*self.TWO, rules=[FieldRule("title", required=False), FieldRule("text")])
        assert prompter.render(spec, fields={"text": "b"}).tokens == literal(tokenizer, ": b")

    def test_a_long_field_is_refused_or_cut(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        text = "The quick brown fox jumps over the lazy dog."
        own = literal(tokenizer, text)
        assert len(own) > 6

        def render(limit: int, truncate: str | None) -> tuple[int, ...]:
            rule = FieldRule("text", max_tokens=limit, truncate=truncate)
            return prompter.render(templated(Field("text"), Rows(0, 3), rules=[rule]), prompt=text).tokens[:-4]

        assert render(len(own), None) == own
        assert render(6, "right") == own[:6]
        assert render(6, "left") == own[-6:]
        with pytest.raises(InvalidRequest, match=f"field text has {len(own)} tokens.* at most 6") as caught:
            render(6, None)
        assert caught.value.param == "prompt"


class TestTasks:
    MULTI = replace(SOFT, kind=AdapterKind.MULTITASK_PROMPT_TUNING, num_tasks=3, tasks=(("spam", 2), ("ham", 0)))

    @pytest.mark.parametrize(("task", "index"), [(0, 0), (2, 2), ("spam", 2), ("ham", 0)])
    def test_a_task_is_an_index_or_a_name(self, prompter: Prompter, task: int | str, index: int) -> None:
        assert prompter.render(self.MULTI, prompt="x", task=task).task_index == index

    @pytest.mark.parametrize("task", [3, -1, "eggs", "0", True, None])
    def test_another_task_is_refused_with_the_list(self, prompter: Prompter, task: int | str | None) -> None:
        with pytest.raises(InvalidRequest, match="0 to 2, or spam, ham") as caught:
            prompter.render(self.MULTI, prompt="x", task=task)
        assert caught.value.param == "task"

    def test_a_single_task_needs_no_name(self, prompter: Prompter) -> None:
        assert prompter.render(replace(self.MULTI, num_tasks=1, tasks=()), prompt="x").task_index == 0

    @pytest.mark.parametrize("spec", [None, SOFT, KV])
    def test_other_kinds_take_no_task(self, prompter: Prompter, spec: AdapterSpec | None) -> None:
        with pytest.raises(InvalidRequest, match="multitask") as caught:
            prompter.render(spec, prompt="x", task=0)
        assert caught.value.param == "task"


class TestLimits:
    def test_far_too_long_text_is_refused_before_tokenising(self, tokenizer: Tokenizer, prompter: Prompter) -> None:
        longest = "x" * (BASE.context_length * tokenizer.max_token_chars)
        assert prompter.render(None, prompt=longest).tokens
        one = templated(Rows(0, 3), Field("text"))
        for given in (
            {"prompt": longest + "x"},
            {"messages": [{"role": "user", "content": longest + "x"}]},
        ):
            with pytest.raises(ContextTooLong, match="characters") as caught:
                prompter.render(None, **given)  # type: ignore[arg-type]
            assert caught.value.param in given
        with pytest.raises(ContextTooLong):
            prompter.render(one, fields={"text": longest + "x"})

    def test_too_much_text_never_reaches_the_chat_template(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer(byte_level(tmp_path, chat="{{ raise_exception('rendered') }}"))
        prompter = Prompter(tokenizer, BASE)
        half = {"role": "user", "content": "x" * (BASE.context_length * tokenizer.max_token_chars // 2 + 1)}
        with pytest.raises(InvalidRequest, match="rendered"):
            prompter.render(None, messages=[half])
        with pytest.raises(ContextTooLong, match="characters"):
            prompter.render(None, messages=[half, half])

    @pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
    def test_half_a_surrogate_pair_is_no_text(self, prompter: Prompter, text: str) -> None:
        for spec, given in (
            (None, {"prompt": text}),
            (None, {"messages": [{"role": "user", "content": text}]}),
            (templated(Field("text")), {"fields": {"text": text}}),
        ):
            with pytest.raises(InvalidRequest, match="surrogate"):
                prompter.render(spec, **given)  # type: ignore[arg-type]

    def test_a_token_that_the_model_does_not_know_is_refused(self, tokenizer: Tokenizer) -> None:
        small = Prompter(tokenizer, replace(BASE, vocab_size=300))
        assert small.render(None, prompt="xyz").tokens
        for spec, given in (
            (None, {"prompt": "The quick"}),
            (None, {"messages": [{"role": "user", "content": "The quick"}]}),
            (templated(Rows(0, 3), Field("text")), {"prompt": "The quick"}),
        ):
            with pytest.raises(InvalidRequest, match="no embedding"):
                small.render(spec, **given)  # type: ignore[arg-type]
