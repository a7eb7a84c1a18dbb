"""Log-probabilities of a prompt's own tokens: those of transformers and PEFT, however the prompt is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.core import FinishReason, SamplingParams, Scoring
from server.engine.loading import Sizes, assemble
from server.engine.loop import Engine
from server.engine.messages import StepReport, Submit, decode, encode
from server.engine.model.load import LoadedModel, from_module
from tests.engine.asking import Told, ask_all
from tests.parity.bench import Inline, base_of
from tests.parity.oracle import ask_plain
from tests.parity.test_parity import BACKENDS, CROWDED, NATIVE, ROOMY, TIGHT, all_cases, prompt_of
from tests.tiny_models import VOCAB_SIZE, tiny_model

SCORED = SamplingParams(max_tokens=0)
TOP = 3


@contextmanager
def engine_of(sizes: Sizes, attention: str, module: LoadedModel | None = None) -> Iterator[Engine]:
    model = module or from_module(tiny_model("llama"), max_model_len=sizes.max_model_len)
    with Inline() as readers:
        yield assemble(
            model, base_of(model), NATIVE.get(sizes, sizes) if attention == "native" else sizes, attention, readers
        )


def require(told: Told, tokens: tuple[int, ...], logits: Tensor, start: int = 1) -> None:
    """Every text token from `start` on is told, and no other; `logits` are the prompt's."""
    expected = logits[: len(tokens)].double().log_softmax(dim=-1)
    places = [i for i in range(start, len(tokens)) if tokens[i] < VOCAB_SIZE]
    assert sorted(told.logprobs) == places
    for place in places:
        assert told.logprobs[place] == pytest.approx(float(expected[place - 1, tokens[place]]), abs=1e-4)
    for place, top in told.tops.items():
        values, ids = expected[place - 1].topk(TOP)
        assert [token for token, _ in top] == ids.tolist()
        assert [logprob for _, logprob in top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("sizes", [ROOMY, CROWDED, TIGHT], ids=["roomy", "crowded", "tight"])
def test_prompts_of_every_kind_are_scored_as_by_peft(tmp_path: Path, sizes: Sizes, attention: str) -> None:
    """All at once, in one batch or in chunks; with virtual tokens inside some prompts, and some that go on to draw."""
    cases = all_cases("llama", tmp_path)
    scoring = Scoring(top=TOP)
    messages = [
        Submit(i, case.question.tokens, SamplingParams(max_tokens=20 * (i % 2)), case.question.adapter, None, scoring)
        for i, case in enumerate(cases)
    ]
    with engine_of(sizes, attention) as engine:
        answers = ask_all(engine, messages)
    for i, case in enumerate(cases):
        require(answers[i], case.question.tokens, case.expected.logits)
        assert len(answers[i].tops) == len(answers[i].logprobs)
        if i % 2:
            assert tuple(event.token for event in answers[i].events) == case.expected.tokens[:20]
        else:
            assert [event.finish for event in answers[i].events] == [FinishReason.LENGTH]


def test_each_token_is_told_once_though_a_preemption_makes_it_be_computed_again() -> None:
    sizes = Sizes(num_blocks=13, block_size=8, prefix_blocks=0, max_seqs=2, step_tokens=4, max_model_len=88)
    old, young = tuple(prompt_of(30, seed=1)), tuple(prompt_of(60, seed=2))
    with engine_of(sizes, "cpu") as engine:
        answers = ask_all(
            engine, [Submit(1, old, SamplingParams(max_tokens=20)), Submit(2, young, SCORED, scoring=Scoring(top=TOP))]
        )
    assert answers.stats[-1].preemptions == 1
    assert answers.computed > 30 + 19 + 60 + 20
    require(answers[2], young, ask_plain(tiny_model("llama"), list(young)).logits)


def test_tokens_that_might_follow_are_scored_behind_the_last(tmp_path: Path) -> None:
    tokens, after = tuple(prompt_of(9, seed=1)), (4, 250, 4)
    row = ask_plain(tiny_model("llama"), list(tokens)).logits[8].double().log_softmax(dim=-1)
    with engine_of(TIGHT, "cpu") as engine:
        told = ask_all(engine, [Submit(1, tokens, SCORED, scoring=Scoring(start=9, after=after))])[1]
    assert told.logprobs == {}
    assert told.scores[-1].after == pytest.approx([float(row[token]) for token in after], abs=1e-4)


def test_only_tokens_from_the_start_on_are_told() -> None:
    tokens = tuple(prompt_of(9, seed=1))
    logits = ask_plain(tiny_model("llama"), list(tokens)).logits
    with engine_of(ROOMY, "cpu") as engine:
        told = ask_all(engine, [Submit(1, tokens, SCORED, scoring=Scoring(start=5))])[1]
    require(told, tokens, logits, start=5)
    assert told.tops == {}


def test_a_prompt_of_one_token_is_told_to_have_nothing_to_tell() -> None:
    with engine_of(ROOMY, "cpu") as engine:
        told = ask_all(engine, [Submit(1, (5,), SCORED, scoring=Scoring(top=2))])[1]
    assert [(scores.start, scores.logprobs, scores.after) for scores in told.scores] == [(1, (), ())]


def test_numbers_are_bitwise_the_same_alone_in_company_and_in_chunks() -> None:
    prompts = [tuple(prompt_of(length, seed=length)) for length in (40, 7, 70, 13)]
    messages = [Submit(i, p, SCORED, None, "a", Scoring(top=TOP, after=(9,))) for i, p in enumerate(prompts)]
    with engine_of(ROOMY, "native") as engine:
        alone = [ask_all(engine, [message])[message.sequence] for message in messages]
        together = ask_all(engine, messages)
    with engine_of(CROWDED, "native") as engine:
        chunked = ask_all(engine, messages)
    for i, told in enumerate(alone):
        for other in (together[i], chunked[i]):
            assert (other.logprobs, other.tops) == (told.logprobs, told.tops)
            assert other.scores[-1].after == told.scores[-1].after


@pytest.mark.parametrize("attention", ["cpu", "native"])
def test_what_was_computed_before_is_used_up_to_the_first_row_that_is_wanted(attention: str) -> None:
    tokens = tuple(prompt_of(100, seed=3))
    logits = ask_plain(tiny_model("llama"), list(tokens)).logits
    with engine_of(ROOMY, attention) as engine:
        first = ask_all(engine, [Submit(1, tokens, SCORED, None, "a", Scoring())])
        again = ask_all(engine, [Submit(2, tokens, SCORED, None, "a", Scoring())])
        later = ask_all(engine, [Submit(3, tokens, SCORED, None, "a", Scoring(start=90))])
    assert (first.computed, again.computed) == (100, 100), "the row of the first token is wanted"
    assert later[3].started is not None
    assert later[3].started.cached_tokens == 100 - later.computed > 50
    require(again[2], tokens, logits)
    require(later[3], tokens, logits, start=90)


def test_a_prompt_whose_logits_are_not_finite_fails_alone() -> None:
    model = from_module(tiny_model("llama"), max_model_len=ROOMY.max_model_len)
    sick, healthy = (5, 6, 9, 7), (5, 6, 8, 7)
    expected = ask_plain(model.module, list(healthy)).logits
    with engine_of(ROOMY, "cpu", model) as engine:
        with torch.no_grad():
            model.module.get_input_embeddings().weight[9] = torch.nan
        messages = [
            Submit(1, sick, SCORED, scoring=Scoring(top=1)),
            Submit(2, healthy, SCORED, scoring=Scoring(top=TOP)),
            Submit(3, sick, replace(SCORED, max_tokens=2), scoring=Scoring()),
        ]
        answers = ask_all(engine, messages)
    for number in (1, 3):
        assert answers[number].failure is not None
        assert answers[number].failure.code == "engine_error"
        assert answers[number].scores == []
    require(answers[2], healthy, expected)


def test_scores_cross_the_process_border() -> None:
    with engine_of(ROOMY, "cpu") as engine:
        engine.submit(Submit(1, (5, 6, 7), SCORED, scoring=Scoring(top=2, after=(8, 9))))
        (report,) = engine.step()
    assert isinstance(report, StepReport)
    assert report.scores
    assert decode(encode(report)[4:]) == report
