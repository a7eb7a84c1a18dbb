"""Adapters: loaded late, compiled in chunks, shared, evicted, forgotten, failing."""

from __future__ import annotations

import pytest

from server.core import AdapterKind, FinishReason
from server.engine.scheduler.plan import Prefix
from server.engine.scheduler.sequence import Status
from tests.scheduler.driving import Story, chunks, spans
from tests.scheduler.simulation import adapter

SOFT = adapter("soft", 6)
OTHER = adapter("other", 6)
KV = adapter("kv", 6, kind=AdapterKind.CARTRIDGE)
TEMPLATE = adapter("template", 0, needs_table=True)


def test_a_load_holds_up_nobody_else() -> None:
    story = Story()
    story.add(3, 4, SOFT)
    story.add(3, 4)
    story.add(3, 4, KV)
    story.add(3, 4)
    plan = story.step()
    assert plan.load == (SOFT, KV)
    assert list(spans(plan)) == [1, 3]
    assert story.step().load == ()
    story.load(KV)
    assert list(spans(story.step())) == [1, 3, 2]


def test_a_soft_prompt_compiles_and_serves_in_one_step() -> None:
    story = Story(step_tokens=16)
    story.add(3, 2, SOFT)
    story.step()
    story.load(SOFT)
    plan = story.step()
    (compiled,) = plan.compile
    assert compiled.tokens == SOFT.prefix_ids
    assert compiled.prefix == Prefix(SOFT.key, 0, ())
    assert spans(plan)[0].prefix == Prefix(SOFT.key, 6, compiled.blocks)
    assert story.finish() == {0: FinishReason.LENGTH}


def test_a_prefix_kv_is_installed_and_serves_in_one_step() -> None:
    story = Story()
    story.add(3, 2, KV)
    story.step()
    story.load(KV)
    plan = story.step()
    assert [(install.key, len(install.blocks)) for install in plan.install] == [(KV.key, 2)]
    assert list(spans(plan)) == [0]


def test_an_adapter_with_a_table_only_takes_no_blocks_but_counts() -> None:
    story = Story()
    story.add(3, 2, TEMPLATE)
    story.step()
    story.load(TEMPLATE)
    plan = story.step()
    prefix = spans(plan)[0].prefix
    assert prefix is not None
    assert (prefix.length, prefix.blocks, plan.install, plan.compile) == (0, (), (), ())
    story.finish()
    stats = story.scheduler.stats()
    assert (stats.blocks_used, stats.prefix_blocks_used, stats.resident) == (0, 1, 1)


def test_chunks_of_a_compile_do_not_depend_on_the_load() -> None:
    long = adapter("long", 20)
    starts = []
    for crowd in (0, 3):
        story = Story(step_tokens=12)
        for _ in range(crowd):
            story.add(10, 25)
        for _ in range(3):
            story.step()
        story.add(3, 2, long)
        story.step()
        story.load(long)
        starts.append(chunks(*(story.step() for _ in range(6))))
    assert starts[0] == starts[1] == [(0, 6), (6, 6), (12, 6), (18, 2)]


def test_packed_compiles_share_a_step_and_all_but_the_last_are_whole() -> None:
    story = Story(step_tokens=32, packed=True)
    sources = [adapter(f"adapter {number}", 6) for number in range(4)]
    for source in sources:
        story.add(2, 3, source)
    story.step()
    story.load(*sources)
    plan = story.step()
    assert chunks(plan) == [(0, 6), (0, 6), (0, 4)]
    assert [span.prefix for span in plan.compile] == [Prefix(source.key, 0, ()) for source in sources[:3]]
    assert list(spans(plan)) == [0, 1]
    plan = story.step()
    assert chunks(plan) == [(4, 2), (0, 6)]
    assert list(spans(plan)) == [0, 1, 2, 3]
    assert set(story.finish()) == {0, 1, 2, 3}


def test_packed_compiles_leave_every_running_sequence_a_token() -> None:
    story = Story(step_tokens=8, packed=True)
    for _ in range(3):
        story.add(1, 30)
    story.step()
    sources = [adapter(f"adapter {number}", 3) for number in range(3)]
    for source in sources:
        story.add(2, 3, source)
    story.step()
    story.load(*sources)
    plan = story.step()
    assert chunks(plan) == [(0, 3)]
    assert [len(span.tokens) for span in plan.spans] == [1, 1, 1, 2]
    plan = story.step()
    assert chunks(plan) == [(0, 3)]
    assert [len(span.tokens) for span in plan.spans] == [1, 1, 1, 1]


def test_a_prefix_is_held_once_for_all_that_use_it() -> None:
    story = Story()
    for _ in range(4):
        story.add(3, 4, KV)
    story.step()
    story.load(KV)
    plan = story.step()
    assert len(plan.install) == 1
    assert len({span.prefix for span in plan.spans}) == 1
    assert story.scheduler.stats().blocks_used == 2 + 4


def test_an_idle_prefix_stays_and_serves_again_without_a_load() -> None:
    story = Story()
    story.add(3, 2, SOFT)
    story.finish()
    assert story.scheduler.stats().resident == 1
    story.add(3, 2, SOFT)
    plan = story.step()
    assert list(spans(plan)) == [0 + 1]
    assert (plan.load, plan.compile) == ((), ())
    assert story.scheduler.stats().loads == 1


def test_the_least_recently_used_idle_prefix_goes_first() -> None:
    story = Story(prefix_blocks=4)
    for source in (SOFT, OTHER, SOFT):
        story.add(3, 2, source)
        story.finish()
    story.add(3, 2, KV)
    story.step()
    story.load(KV)
    assert story.step().evict == (OTHER.key,)


def test_a_prefix_in_use_stays_whatever_waits_for_room() -> None:
    story = Story(prefix_blocks=2)
    story.add(3, 9, SOFT)
    story.step()
    story.load(SOFT)
    story.step()
    story.add(3, 2, KV)
    story.step()
    story.load(KV)
    for _ in range(4):
        plan = story.step()
        assert list(spans(plan)) == [0]
        assert plan.evict == ()
    assert story.finish() == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}


def test_who_waits_for_room_for_a_prefix_is_passed_by_nobody() -> None:
    story = Story(prefix_blocks=2)
    story.add(3, 6, SOFT)
    story.step()
    story.load(SOFT)
    story.step()
    story.add(3, 2, KV)
    story.step()
    story.load(KV)
    story.add(3, 2)
    assert list(spans(story.step())) == [0]


def test_a_table_alone_is_not_evicted_for_blocks() -> None:
    story = Story(num_blocks=11, max_model_len=40, step_tokens=40)
    for source in (TEMPLATE, SOFT):
        story.add(3, 2, source)
        story.finish()
    story.add(36, 4)  # the nine blocks that are free, and one more
    story.finish()
    assert set(story.engine.hosted) == {TEMPLATE.key}


def test_a_failed_load_ends_those_that_wait_for_it_and_the_next_tries_again() -> None:
    story = Story()
    story.add(3, 2, SOFT)
    story.add(3, 2, SOFT)
    story.add(3, 2, OTHER)
    story.step()
    del story.engine.reading[SOFT.key]
    assert story.scheduler.prefix_failed(SOFT.key) == [0, 1]
    with pytest.raises(KeyError):
        story.scheduler.sequence(0)
    story.add(3, 2, SOFT)
    assert story.step().load == (SOFT,)
    story.load(SOFT, OTHER)
    assert set(story.finish()) == {2, 3}


def test_an_answer_to_a_load_that_no_plan_asked_for_is_refused() -> None:
    story = Story()
    with pytest.raises(ValueError, match="was not being loaded"):
        story.scheduler.prefix_loaded(SOFT.key)
    story.add(3, 2, SOFT)
    story.step()
    story.load(SOFT)
    with pytest.raises(ValueError, match="was not being loaded"):
        story.scheduler.prefix_failed(SOFT.key)


def test_what_nobody_waits_for_any_more_is_dropped_when_it_is_read() -> None:
    story = Story()
    story.add(3, 2, SOFT)
    story.step()
    story.scheduler.abort(0)
    assert not story.scheduler.has_work
    story.load(SOFT)
    assert story.scheduler.has_work
    assert story.step().evict == (SOFT.key,)
    assert not story.scheduler.has_work


def test_a_compile_that_nobody_waits_for_any_more_ends() -> None:
    story = Story(step_tokens=8)
    story.add(3, 2, SOFT)
    story.step()
    story.load(SOFT)
    flying = story.plan()
    assert flying.compile
    story.scheduler.abort(0)
    assert story.scheduler.stats().blocks_used == 0
    plan = story.plan()
    assert plan.evict == (SOFT.key,)
    assert not plan.compile
    story.commit(flying)
    assert not story.scheduler.has_work


def test_forget_evicts_an_idle_prefix_now() -> None:
    story = Story()
    story.add(3, 2, SOFT)
    story.finish()
    story.scheduler.forget("soft")
    assert story.scheduler.has_work
    assert story.step().evict == (SOFT.key,)
    assert story.scheduler.stats().blocks_used == 0


def test_forget_waits_for_the_last_that_uses_the_prefix() -> None:
    story = Story(max_seqs=1)
    story.add(3, 2, SOFT)
    story.add(3, 2, SOFT)
    story.step()
    story.load(SOFT)
    story.step()
    story.scheduler.forget("soft")
    story.scheduler.forget("never seen")
    assert story.finish() == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}
    assert SOFT.key not in story.engine.hosted
    assert story.scheduler.stats().resident == 0
    story.add(3, 2, SOFT)
    assert story.step().load == (SOFT,)


def test_files_in_host_memory_are_bounded() -> None:
    story = Story(max_loads=2)
    sources = [adapter(f"adapter {number}", 4) for number in range(4)]
    for source in sources:
        story.add(3, 2, source)
    assert story.step().load == tuple(sources[:2])
    assert story.step().load == ()
    story.load(sources[0])
    assert story.step().load == (sources[2],)


def test_the_file_of_an_older_sequence_takes_a_younger_ones_place() -> None:
    # Sequence 1 loses its memory and then its prefix to sequence 0. The one load slot is taken by the adapter of
    # sequence 2, which is loaded and waits for room.
    story = Story(max_seqs=2, num_blocks=11, step_tokens=40, prefix_blocks=3, max_loads=1)
    story.add(12, 27)
    preempted = story.add(12, 20, SOFT)
    story.step()
    story.load(SOFT)
    story.step()
    large = adapter("large", 12)
    story.add(3, 2, large)
    story.step()
    story.load(large)
    while preempted.status is Status.RUNNING:
        story.step()
    while not (plan := story.step()).evict:
        assert plan.load == ()
    assert plan.evict == (SOFT.key, large.key)
    assert plan.load == (SOFT,)
    assert set(story.finish()) == {0, 1, 2}


def test_one_that_runs_alone_takes_the_blocks_of_a_younger_ones_compile() -> None:
    story = Story(num_blocks=11, max_model_len=40, step_tokens=10, max_seqs=1, prefix_blocks=8)
    long = adapter("long", 26)
    running = story.add(12, 20)
    story.step()
    story.step()
    story.add(1, 2, long)
    story.step()
    story.load(long)
    plans = [story.step() for _ in range(5)]
    assert chunks(*plans) == [(0, 5), (5, 5), (10, 5)]
    assert all(running.id in spans(plan) for plan in plans)
    assert story.scheduler.stats().preemptions == 0
    assert set(story.finish()) == {0, 1}


def test_one_that_runs_alone_yields_to_an_older_ones_compile() -> None:
    story = Story(num_blocks=11, max_model_len=40, step_tokens=10, max_seqs=1, prefix_blocks=8)
    long = adapter("long", 26)
    story.add(1, 2, long)
    young = story.add(14, 20)
    story.step()
    story.step()
    story.load(long)
    compiled = chunks(*(story.step() for _ in range(6)))
    assert compiled == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 5), (25, 1)]
    assert young.status is Status.WAITING
    assert story.scheduler.stats().preemptions == 1
    assert set(story.finish()) == {0, 1}
