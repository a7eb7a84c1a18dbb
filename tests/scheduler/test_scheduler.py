"""What one step holds: tokens, blocks, turns, ends."""

from __future__ import annotations

import pytest

from server.core import NO_TOKEN, FinishReason, SamplingParams
from server.engine.scheduler.plan import PENDING
from server.engine.scheduler.scheduler import Limits
from server.engine.scheduler.sequence import Sequence, Status
from tests.scheduler.driving import DRAWN, Story, spans
from tests.scheduler.simulation import EOS, adapter


def test_a_long_prompt_is_computed_in_chunks_and_draws_from_its_last_row() -> None:
    story = Story(step_tokens=8)
    story.add(20)
    first, second, third = story.step(), story.step(), story.step()
    assert [(plan.spans[0].start, len(plan.spans[0].tokens)) for plan in (first, second, third)] == [
        (0, 8),
        (8, 8),
        (16, 4),
    ]
    assert [plan.spans[0].samples for plan in (first, second, third)] == [False, False, True]
    assert story.step().spans[0].tokens == (DRAWN,)


def test_every_running_sequence_advances_beside_a_long_prompt() -> None:
    story = Story(step_tokens=8)
    short = [story.add(1, 10) for _ in range(3)]
    story.step()
    story.add(30)
    story.step()
    for _ in range(3):
        plan = spans(story.step())
        assert all(len(plan[sequence.id].tokens) == 1 for sequence in short)
        assert len(plan[3].tokens) == 5


def test_admission_is_in_order_and_stops_at_max_seqs() -> None:
    story = Story(max_seqs=2)
    for _ in range(3):
        story.add(2, 2)
    assert list(spans(story.step())) == [0, 1]
    assert list(spans(story.step())) == [0, 1]
    assert list(spans(story.step())) == [2]
    assert story.scheduler.stats().waiting == 0


def test_who_lacks_blocks_is_passed_by_nobody() -> None:
    story = Story(num_blocks=11, block_size=4, max_model_len=40)
    story.add(20, 8)
    story.add(30, 2)
    story.add(1, 2)
    assert list(spans(story.step())) == [0]
    for _ in range(8):
        plan = story.step()
        assert 2 not in spans(plan) or 1 in spans(plan) or story.scheduler.stats().waiting == 0
    assert set(story.finish()) == {1, 2}


def test_admission_leaves_room_for_what_runs_to_grow() -> None:
    story = Story(num_blocks=11, block_size=4, max_model_len=40)
    story.add(20, 8)
    story.step()
    story.add(24, 2)  # the six free blocks would just hold it
    assert list(spans(story.step())) == [0]


def test_preemption_takes_the_youngest_and_keeps_its_tokens() -> None:
    story = Story(num_blocks=11, block_size=4, max_model_len=40, step_tokens=40)
    old, young = story.add(16, 20), story.add(16, 20)
    while not story.scheduler.stats().preemptions:
        before = list(young.tokens)
        plan = story.step()
    assert old.id in spans(plan)
    assert young.id not in spans(plan)
    assert young.tokens == before
    assert young.blocks == ()
    assert story.finish() == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}


def test_a_plan_may_be_made_before_the_last_is_committed() -> None:
    story = Story()
    story.add(3, 3)
    first = story.plan()
    second = story.plan()
    assert second.spans[0].tokens == (PENDING,)
    assert second.spans[0].start == 3
    with pytest.raises(RuntimeError, match="two plans"):
        story.scheduler.schedule()
    with pytest.raises(ValueError, match="in the order"):
        story.commit(second)
    assert story.commit(first)[0].token == DRAWN
    third = story.plan()
    assert third.spans[0].tokens == (PENDING,)
    fourth_is_empty = story.commit(second), story.plan()
    assert not fourth_is_empty[1].spans, "the third token ends it; nothing more is to be computed"
    assert story.commit(third)[0].finish is FinishReason.LENGTH


def test_what_is_drawn_beyond_the_end_is_discarded() -> None:
    story = Story()
    sequence = story.add(3, 9, stop_token_ids=(7,))
    first, second = story.plan(), story.plan()
    assert story.commit(first, token=7)[0].finish is FinishReason.STOP
    assert story.scheduler.stats().blocks_used == 0
    assert story.commit(second, token=9) == []
    assert sequence.tokens == [1, 2, 3, 7]
    assert not story.scheduler.has_work


def test_a_token_in_flight_outlives_a_preemption() -> None:
    story = Story(num_blocks=11, block_size=4, max_model_len=40, step_tokens=40)
    story.add(16, 20)
    young = story.add(16, 20)
    flying = story.plan()
    while young.status is Status.RUNNING:
        following = story.plan()
        known = len(young.tokens)
        story.commit(flying)
        flying = following
    assert len(young.tokens) == known + 1
    story.commit(flying)
    assert story.finish() == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}


def test_abort_frees_at_once_and_is_safe_at_any_time() -> None:
    story = Story(max_seqs=2)
    story.add(3), story.add(3), story.add(3)
    flying = story.plan()
    assert story.scheduler.abort(0)
    assert story.scheduler.abort(2)
    assert not story.scheduler.abort(0)
    assert not story.scheduler.abort(99)
    assert story.scheduler.stats().blocks_used == 1
    assert [outcome.sequence for outcome in story.commit(flying)] == [1]
    assert set(story.finish()) == {1}


def test_a_failed_draw_may_be_left_out_once_its_sequence_is_aborted() -> None:
    story = Story()
    story.add(3, 1), story.add(3, 1)
    plan = story.plan()
    story.scheduler.abort(0)
    assert [outcome.sequence for outcome in story.scheduler.commit(plan, {1: DRAWN})] == [1]


@pytest.mark.parametrize(
    ("params", "tokens", "ends"),
    [
        ({}, [EOS], FinishReason.STOP),
        ({"ignore_eos": True}, [EOS, 1, 1], FinishReason.LENGTH),
        ({"stop_token_ids": (4,)}, [1, 4], FinishReason.STOP),
        ({"stop_token_ids": (4,), "ignore_eos": True}, [EOS, 4], FinishReason.STOP),
        ({"min_tokens": 2}, [EOS, EOS, EOS], FinishReason.STOP),
        ({"min_tokens": 1, "stop_token_ids": (4,)}, [4, 1, 1], FinishReason.LENGTH),
        ({}, [1, 2, EOS], FinishReason.STOP),
    ],
)
def test_how_a_sequence_ends(params: dict[str, object], tokens: list[int], ends: FinishReason) -> None:
    story = Story()
    sequence = Sequence(0, [1, 2], SamplingParams(max_tokens=3, **params))  # type: ignore[arg-type]
    story.scheduler.add(sequence)
    finishes = [story.commit(story.plan(), token)[0].finish for token in tokens]
    assert finishes == [None] * (len(tokens) - 1) + [ends]
    assert sequence.tokens == [1, 2, *tokens]
    assert not story.scheduler.has_work


def test_rows_are_asked_for_once_each_with_nothing_drawn() -> None:
    story = Story(step_tokens=8)
    sequence = story.add(20, 0, rows=(0, 7, 8, 19))
    plans = [story.plan()]
    while not (outcomes := story.commit(plans[-1])):
        plans.append(story.plan())
    assert [(plan.spans[0].start, plan.spans[0].rows) for plan in plans] == [(0, (0, 7)), (8, (0,)), (16, (3,))]
    assert not any(plan.spans[0].samples for plan in plans)
    assert [(outcome.token, outcome.finish) for outcome in outcomes] == [(NO_TOKEN, FinishReason.LENGTH)]
    assert sequence.tokens == list(range(1, 21))


def test_new_blocks_are_cleared_in_the_plan_that_hands_them_out() -> None:
    story = Story(block_size=4)
    sequence = story.add(4, 6)
    assert story.step().zero == sequence.blocks
    grown = story.step()
    assert grown.zero == sequence.blocks[1:]
    assert len(grown.zero) == 1
    assert story.step().zero == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step_tokens": 7}, "at least 8"),
        ({"num_blocks": 10, "prefix_blocks": 0}, "takes 11"),
        ({"prefix_blocks": 41}, "41 of 40"),
        ({"prefix_blocks": -1}, "-1 of 40"),
        ({"max_seqs": 0}, "at least 1"),
        ({"max_loads": 0}, "at least 1"),
    ],
)
def test_limits_that_could_make_a_sequence_wait_for_ever_are_refused(change: dict[str, int], reason: str) -> None:
    good = {
        "max_seqs": 4, "step_tokens": 8, "max_model_len": 40, "num_blocks": 40, "block_size": 4, "prefix_blocks": 20
    }  # fmt: skip
    Limits(**good)
    with pytest.raises(ValueError, match=reason):
        Limits(**{**good, **change})


def test_what_could_never_fit_is_refused() -> None:
    story = Story(max_model_len=40, prefix_blocks=3)
    with pytest.raises(ValueError, match="41 tokens"):
        story.add(30, 11)
    with pytest.raises(ValueError, match="41 tokens"):
        story.add(20, 9, adapter("a", 12))
    with pytest.raises(ValueError, match="4 blocks"):
        story.add(1, 1, adapter("a", 12, needs_table=True))
    with pytest.raises(ValueError, match="at least one token"):
        story.add(0, 1)
    with pytest.raises(ValueError, match="rows"):
        story.add(3, 1, rows=(3,))
    assert not story.scheduler.has_work
    story.add(20, 8, adapter("a", 12))
    with pytest.raises(ValueError, match="in use"):
        story.scheduler.add(Sequence(0, [1], SamplingParams(max_tokens=1)))
    assert story.finish() == {0: FinishReason.LENGTH}


def test_an_unfinished_sequence_can_be_looked_up() -> None:
    story = Story()
    sequence = story.add(3, 1)
    assert story.scheduler.sequence(0) is sequence
    story.finish()
    with pytest.raises(KeyError):
        story.scheduler.sequence(0)
