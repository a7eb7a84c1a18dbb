"""What earlier sequences computed is found again: by the same tokens, adapter and salt, and by nothing else."""

from __future__ import annotations

import pytest

from server.core import AdapterKind, AdapterSource, FinishReason, SamplingParams
from server.engine.scheduler.plan import Copy
from server.engine.scheduler.sequence import Sequence, Status
from tests.scheduler.driving import DRAWN, Story, spans
from tests.scheduler.simulation import VOCAB, adapter

PROMPT = list(range(1, 11))
"""Ten tokens: two full blocks of four, and two more."""


def reused(story: Story, sequence: Sequence) -> int:
    """Step until the sequence gets its first span; return where that starts, and end the sequence."""
    while sequence.status is Status.WAITING:
        plan = story.plan()
        story.scheduler.commit(plan, story.drawn)
        for key in list(story.engine.reading):
            story.load(story.engine.reading[key])
    start = spans(plan)[sequence.id].start
    story.finish()
    return start


def test_a_prompt_that_starts_alike_points_to_the_same_full_blocks_and_copies_of_the_next() -> None:
    story = Story()
    first = story.add(PROMPT, 8, salt="a")
    story.step()
    blocks = first.blocks
    second = story.add([*PROMPT[:9], 17, 18], 8, salt="a")
    plan = story.step()
    assert second.blocks[:2] == blocks[:2]
    assert plan.copy == (Copy(blocks[2], second.blocks[2], 1),)
    assert second.blocks[2] not in blocks, "a shared block is never written to"
    assert (spans(plan)[1].start, spans(plan)[1].tokens) == (9, (17, 18))
    assert not set(plan.zero) & {*blocks, *second.blocks}, "what is shared or copied to must not be cleared"
    assert story.scheduler.stats().blocks_used == 4
    assert story.finish() == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}
    assert story.scheduler.stats().blocks_used == 0


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        (PROMPT, 9),  # two full blocks, and one token of what the last held
        (PROMPT[:9], 8),
        (PROMPT[:8], 7),  # the last token is computed again: the first draw needs its logits
        (PROMPT[:5], 4),
        (PROMPT[:4], 3),
        ([*PROMPT, 1, 2, 3], 10),
        ([*PROMPT[:7], 18], 7),
        ([*PROMPT[:4], 18, *PROMPT[5:]], 4),
        ([1, 2, 18], 2),
        ([18, *PROMPT[1:]], 0),  # later blocks alike, the first not
    ],
)
def test_how_much_is_found(prompt: list[int], start: int) -> None:
    story = Story()
    reused(story, story.add(PROMPT, 1, salt="a"))
    assert reused(story, story.add(prompt, 1, salt="a")) == start
    stats = story.scheduler.stats()
    assert (stats.asked_tokens, stats.cached_tokens) == (10 + len(prompt), start)


def test_an_answer_is_found_by_the_next_turn() -> None:
    story = Story()
    first = story.add(PROMPT, 8, salt="a")
    story.finish()
    assert len(first.tokens) == 18
    assert reused(story, story.add([*first.tokens, 1, 2], 1, salt="a")) == 17, "all but the last, never computed"


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("a", None), (None, "a"), (None, None)])
def test_nothing_is_found_across_salts_or_without_one(one: str | None, other: str | None) -> None:
    story = Story()
    reused(story, story.add(PROMPT, 1, salt=one))
    assert reused(story, story.add(PROMPT, 1, salt=other)) == 0
    assert story.scheduler.stats().cached_tokens == 0


SOFT = adapter("soft", 3)
TEMPLATE, OTHER_TEMPLATE = (adapter(digest, 0, needs_table=True) for digest in ("one", "other"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, SOFT),
        (SOFT, None),
        (SOFT, adapter("harder", 3)),
        (SOFT, adapter("soft", 3, task=1)),
        (SOFT, adapter("soft", 2)),
        (adapter("kv", 3, kind=AdapterKind.CARTRIDGE), SOFT),
        (None, TEMPLATE),
        (TEMPLATE, OTHER_TEMPLATE),
    ],
)
def test_nothing_is_found_across_adapters(one: AdapterSource | None, other: AdapterSource | None) -> None:
    """Also not where no prefix comes first: a virtual token inside the prompt has the same id in every adapter."""
    prompt = [VOCAB, VOCAB + 1, *PROMPT]
    story = Story()
    reused(story, story.add(prompt, 1, one, salt="a"))
    assert reused(story, story.add(prompt, 1, other, salt="a")) == 0
    assert reused(story, story.add(prompt, 1, one, salt="a")) == 11
    assert reused(story, story.add(prompt, 1, other, salt="a")) == 11


def test_what_is_found_outlives_the_eviction_of_its_prefix() -> None:
    story = Story()
    reused(story, story.add(PROMPT, 1, SOFT, salt="a"))
    story.scheduler.forget("soft")
    story.finish()
    assert story.scheduler.stats().resident == 0
    assert reused(story, story.add(PROMPT, 1, SOFT, salt="a")) == 9
    assert story.scheduler.stats().loads == 2


def test_rows_that_are_wanted_are_computed() -> None:
    story = Story()
    reused(story, story.add(PROMPT, 1, salt="a"))
    sequence = story.add(PROMPT, 1, rows=(6, 9), salt="a")
    assert reused(story, sequence) == 6
    assert story.engine.rows[sequence.id] == [6, 9]
    assert reused(story, story.add(PROMPT, 0, rows=(0,), salt="a")) == 0


def test_kept_blocks_are_free_and_make_nobody_wait() -> None:
    story = Story(num_blocks=11, max_model_len=40, step_tokens=40)
    reused(story, story.add(list(range(1, 40)), 1, salt="a"))
    assert story.scheduler.stats().blocks_used == 0
    other = story.add([18] * 39, 1, salt="a")
    assert list(spans(story.step())) == [other.id]
    assert story.scheduler.stats().preemptions == 0
    assert reused(story, story.add(PROMPT, 1, salt="a")) == 4, "the end of a chain goes before its start"


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    story = Story(num_blocks=11, max_model_len=40, step_tokens=40)
    story.add([18] * 16, 20, salt="b")
    young = story.add(16, 20, salt="a")
    while not story.scheduler.stats().preemptions:
        story.step()
    while young.status is not Status.RUNNING:
        plan = story.step()
    assert spans(plan)[young.id].start == 8, "what the older one has not taken meanwhile"
    assert story.scheduler.stats().cached_tokens == 0, "a prompt is counted once, when it first runs"
    assert set(story.finish()) >= {young.id}


def test_a_preemption_leaves_shared_blocks_with_those_that_run() -> None:
    story = Story(num_blocks=11, max_model_len=40, step_tokens=40)
    prompt = list(range(1, 17))
    old = story.add(prompt, 20, salt="a")
    story.step()
    young = story.add([*prompt, 18], 20, salt="a")
    story.step()
    assert young.blocks[:4] == old.blocks[:4]
    third = story.add([17] * 14, 20, salt="a")
    assert story.finish() == dict.fromkeys((old.id, young.id, third.id), FinishReason.LENGTH)
    assert story.scheduler.stats().preemptions > 0
    story.scheduler.check_integrity()


def test_what_an_aborted_sequence_computed_is_found() -> None:
    story = Story(step_tokens=8)
    story.add(PROMPT, 4, salt="a")
    story.step()
    assert story.scheduler.abort(0)
    assert reused(story, story.add(PROMPT, 1, salt="a")) == 8


def test_blocks_are_found_once_their_plan_is_committed() -> None:
    story = Story(step_tokens=16)
    story.add(PROMPT, 4, salt="a")
    flying = story.plan()
    story.add(PROMPT, 4, salt="a")
    following = story.plan()
    assert spans(following)[1].start == 0
    story.commit(flying)
    story.add(PROMPT, 4, salt="a")
    assert spans(story.plan())[2].start == 9


def test_a_token_in_flight_is_no_part_of_a_name() -> None:
    story = Story()
    sequence = story.add(PROMPT[:7], 4, salt="a")
    first, second = story.plan(), story.plan()  # the second computes the eighth token while its value is unknown
    story.commit(first)
    story.commit(second)
    assert sequence.tokens == [*PROMPT[:7], DRAWN, DRAWN]
    assert story.scheduler.abort(sequence.id)
    other = Sequence(9, [*PROMPT[:7], DRAWN, 1], SamplingParams(max_tokens=1), salt="a")
    story.scheduler.add(other)
    assert story.scheduler.schedule().spans[0].start == 8


def test_the_longest_common_start_is_copied() -> None:
    story = Story()
    for ending in ([9, 10, 11], [9, 10], [9, 12, 13], [14]):
        story.add([*PROMPT[:8], *ending], 1, salt="a")
    story.finish()
    for ending, start in (([9, 10, 11, 1], 11), ([9, 10, 1], 10), ([9, 12, 1, 1], 10), ([14, 1], 9), ([15, 1], 8)):
        assert reused(story, story.add([*PROMPT[:8], *ending], 1, salt="a")) == start


def test_what_is_copied_may_be_handed_out_in_the_same_plan() -> None:
    """A prefix and one sequence take the whole pool: what the next copies from is among the blocks that it gets."""
    story = Story(num_blocks=11, max_model_len=40, step_tokens=40)
    short = adapter("short", 2)
    reused(story, story.add([1, 2, 3, *[17] * 34], 1, short, salt="a"))
    sequence = story.add([1, 2, *[18] * 36], 0, short, salt="a")
    plan = story.step()
    (copy,) = plan.copy
    assert copy.tokens == 2
    assert sequence.blocks == ()
    assert spans(plan)[sequence.id].blocks[-1] == copy.source, "it was the last to go"
    assert copy.source in plan.zero


def test_what_is_copied_may_stay_in_its_block() -> None:
    story = Story(num_blocks=2, max_model_len=4, max_seqs=1, step_tokens=8, prefix_blocks=1)
    tiny = adapter("tiny", 1)
    reused(story, story.add([1, 2, 3], 0, tiny, salt="a"))
    story.add([1, 2, 4], 0, tiny, salt="a")
    plan = story.step()
    (copy,) = plan.copy
    assert (copy.source, copy.tokens) == (copy.target, 2)
    assert plan.zero == ()


def test_a_block_that_was_copied_from_stays_longer() -> None:
    story = Story(num_blocks=4, max_model_len=12, step_tokens=12)
    for first in (1, 2, 3):
        reused(story, story.add([first, 5, 6], 1, salt="a"))
    assert reused(story, story.add([1, 7], 0, salt="a")) == 1
    reused(story, story.add([9, 9, 9, 9, 9], 1, salt="a"))  # takes the two blocks that were unread longest
    assert reused(story, story.add([1, 5, 8], 0, salt="a")) == 2
    assert reused(story, story.add([2, 5, 8], 0, salt="a")) == 0


def test_it_can_be_switched_off() -> None:
    story = Story(prompt_cache=False)
    reused(story, story.add(PROMPT, 1, salt="a"))
    assert reused(story, story.add(PROMPT, 1, salt="a")) == 0
    assert story.scheduler.stats().asked_tokens == 0
