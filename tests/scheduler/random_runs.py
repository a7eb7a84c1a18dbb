"""One random life of a scheduler: arrivals, aborts, late and failing loads, evictions, tiny pools, a plan in flight."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import asdict, dataclass, field

from server.core import NO_TOKEN, AdapterKind, AdapterSource, FinishReason, PrefixKey, SamplingParams
from server.engine.scheduler.plan import StepPlan
from server.engine.scheduler.scheduler import Limits, Scheduler
from server.engine.scheduler.sequence import Sequence, Status
from tests.scheduler.simulation import EOS, VOCAB, SimulatedEngine, adapter, answer


@dataclass
class Tally:
    """What happened in some runs, to know that they met what they are for."""

    runs: int = 0
    steps: int = 0
    sequences: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    preemptions: int = 0
    evictions: int = 0
    loads: int = 0
    abandoned_compiles: int = 0
    reused_tokens: int = 0
    reused_after_a_preemption: int = 0
    copies: int = 0
    copies_of_what_is_handed_out: int = 0
    steps_with_many_compiles: int = 0
    steps_with_a_plan_in_flight: int = 0
    longest_wait_to_bound: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        both = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        both["longest_wait_to_bound"] = max(self.longest_wait_to_bound, other.longest_wait_to_bound)
        return Tally(**both)


@dataclass
class Traffic:
    """How rough a run is."""

    adapters: list[AdapterSource]
    arrivals: float  # the chance of another arrival, repeated
    rushes: float  # the chance of eight arrivals at once
    aborts: float
    forgets: float
    failures: float
    load_steps: int  # a file is read in at most so many steps
    pipelined: float  # the chance that a plan is left in flight
    busy_steps: int  # arrivals end here
    stems: list[list[int]]  # what many prompts begin with
    alike: float  # the chance of such a prompt, or of one that goes on from an answer
    salts: tuple[str | None, ...]


@dataclass
class _Wanted:
    sequence: Sequence
    prompt: list[int]
    added: int
    deadline: int
    whole: list[int]  # what it must come to, if nothing ends it early
    drawn: list[int] = field(default_factory=list)


def random_limits(rng: random.Random) -> Limits:
    """Small limits, tight more often than not."""
    block_size = rng.randint(1, 5)
    max_seqs = rng.choice([rng.randint(1, 6), rng.randint(1, 6), 16])
    max_model_len = rng.randint(6, 36)
    least = -(-max_model_len // block_size) + 1
    num_blocks = least + rng.choice([0, 1, 2, rng.randint(0, 10), rng.randint(0, 40), 80])
    return Limits(
        max_seqs=max_seqs,
        step_tokens=2 * max_seqs + rng.choice([0, 1, rng.randint(0, 30), rng.randint(30, 90)]),
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=block_size,
        prefix_blocks=rng.randint(0, num_blocks),
        max_loads=rng.choice([rng.randint(1, 3), 8]),
        packed=rng.random() < 0.5,
        prompt_cache=rng.random() < 0.9,
    )


def table_blocks(source: AdapterSource) -> int:
    """A table counts for one block."""
    return int(source.needs_table)


def random_traffic(rng: random.Random, limits: Limits) -> Traffic:
    """Adapters that fit, and how much goes wrong."""
    adapters = []
    for number in range(rng.randint(0, 6)):
        length = rng.randint(0, rng.choice([limits.max_model_len - 2, min(4, limits.max_model_len - 2)]))
        kind = rng.choice([AdapterKind.PROMPT_TUNING, AdapterKind.P_TUNING, AdapterKind.CARTRIDGE])
        if kind.holds_kv:
            length = max(length, 1)
        source = adapter(
            f"adapter {number % 4}",
            length,
            kind=kind,
            needs_table=not kind.holds_kv and rng.random() < 0.5,
            task=number,
        )
        if -(-length // limits.block_size) + table_blocks(source) <= limits.prefix_blocks:
            adapters.append(source)
    return Traffic(
        adapters=adapters,
        arrivals=rng.choice([0.1, 0.3, 0.6]),
        rushes=rng.choice([0, 0, 0.1]),
        aborts=rng.choice([0, 0, 0.02, 0.1]),
        forgets=rng.choice([0, 0, 0.05]),
        failures=rng.choice([0, 0, 0.2]),
        load_steps=rng.choice([1, rng.randint(1, 8)]),
        pipelined=rng.choice([0, 1, 0.5]),
        busy_steps=rng.choice([5, 15, 30, 60]),
        stems=[[rng.randrange(VOCAB) for _ in range(limits.max_model_len)] for _ in range(rng.randint(1, 2))],
        alike=rng.choice([0, 0.5, 0.9]),
        salts=rng.choice([(None,), ("a",), ("a",), ("a", "b", None)]),
    )


class RandomRun:
    """Drives a scheduler and a simulated engine until everything that was added has ended."""

    def __init__(self, seed: int, *, patience: int = 1) -> None:
        """`patience` multiplies how long new sequences keep arriving."""
        self._rng = rng = random.Random(seed)
        self._limits = random_limits(rng)
        self._traffic = random_traffic(rng, self._limits)
        self._traffic.busy_steps *= patience
        self._scheduler = Scheduler(self._limits, eos_token_ids=(EOS,), table_blocks=table_blocks)
        self._engine = SimulatedEngine(self._limits)
        self._open: dict[int, _Wanted] = {}
        self._said: list[list[int]] = []  # the last answers, with their prompts
        self._in_flight: deque[tuple[StepPlan, dict[int, int]]] = deque()
        self._reading: dict[PrefixKey, int] = {}  # the step by which the file is read
        self._compiling: tuple[PrefixKey, int] | None = None
        self._bound = self._limits.steps_bound(self._traffic.load_steps)
        self.tally = Tally(runs=1)

    def run(self) -> Tally:
        """Run to the end; raises AssertionError where the scheduler breaks a promise."""
        while self.tally.steps < self._traffic.busy_steps or self._scheduler.has_work:
            if self.tally.steps < self._traffic.busy_steps:
                self._disturb()
            self._answer_loads()
            self._step()
        assert not self._open
        self._require_idle()
        return self.tally

    def _disturb(self) -> None:
        rng, traffic = self._rng, self._traffic
        while rng.random() < traffic.arrivals and len(self._open) < 40:
            self._arrive()
        if rng.random() < traffic.rushes and len(self._open) < 40:
            for _ in range(8):
                self._arrive()
        if rng.random() < traffic.aborts and self.tally.sequences:
            number = rng.randrange(self.tally.sequences)
            assert self._scheduler.abort(number) == (number in self._open)
            self.tally.aborted += self._open.pop(number, None) is not None
            assert not self._scheduler.abort(number)
        if rng.random() < traffic.forgets and traffic.adapters:
            self._scheduler.forget(rng.choice(traffic.adapters).key.adapter)

    def _arrive(self) -> None:
        rng = self._rng
        source = rng.choice([None, *self._traffic.adapters])
        room = self._limits.max_model_len - (source.prefix_len if source else 0)
        prompt = self._prompt(rng.randint(1, rng.choice([room, min(room, 4)])))
        max_tokens = rng.choice([rng.randint(0, room - len(prompt)), room - len(prompt)])
        params = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, rng.randint(0, max_tokens)]),
            ignore_eos=rng.random() < 0.5,
            stop_token_ids=rng.choice([(), (rng.randrange(VOCAB),)]),
        )
        rows = frozenset(i for i in range(len(prompt)) if rng.random() < 0.3) if rng.random() < 0.3 else frozenset()
        salt = rng.choice(self._traffic.salts)
        sequence = Sequence(self.tally.sequences, list(prompt), params, source, rows, salt)
        deadline = self.tally.steps + (len(self._open) + 1) * self._bound
        self._scheduler.add(sequence)
        self._engine.added(sequence)
        whole = prompt + answer(prompt, params, source)
        self._open[sequence.id] = _Wanted(sequence, prompt, self.tally.steps, deadline, whole)
        self.tally.sequences += 1

    def _prompt(self, length: int) -> list[int]:
        """So many tokens: at random, or beginning as others do, or going on from an answer."""
        rng = self._rng
        stem = rng.choice([*self._traffic.stems, *self._said]) if rng.random() < self._traffic.alike else []
        stem = stem[: rng.choice([length, length, rng.randint(0, length)])]
        return stem + [rng.randrange(VOCAB) for _ in range(length - len(stem))]

    def _answer_loads(self) -> None:
        for key, due in list(self._reading.items()):
            if self.tally.steps < due and self._rng.random() > 0.2:
                continue
            del self._reading[key]
            if self._rng.random() < self._traffic.failures:
                del self._engine.reading[key]
                failed = self._scheduler.prefix_failed(key)
                assert sorted(failed) == sorted(n for n, want in self._open.items() if want.sequence.key == key)
                for number in failed:
                    del self._open[number]
                self.tally.failed += len(failed)
            else:
                self._engine.loaded(key)
                self._scheduler.prefix_loaded(key)

    def _step(self) -> None:
        before = {number: want.sequence.left for number, want in self._open.items() if self._runs(want)}
        plan = self._scheduler.schedule()
        self._require_progress(plan, before)
        for source in plan.load:
            self._reading[source.key] = self.tally.steps + self._traffic.load_steps
        self._in_flight.append((plan, self._engine.carry_out(plan)))
        self._require_tokens(plan, before)
        self._require_order(plan, before)
        self._scheduler.check_integrity()
        stats = self._scheduler.stats()
        assert stats.prefix_blocks_used <= self._limits.prefix_blocks
        assert stats.running <= self._limits.max_seqs
        assert stats.running + stats.waiting == len(self._open)
        # One more than the limit where the adapter being compiled is still held.
        assert self._engine.waiting_in_host_memory() <= self._limits.max_loads + 1
        self._note_compile(plan)
        handed_out = {*plan.zero, *(copy.target for copy in plan.copy)}
        self.tally.copies += len(plan.copy)
        self.tally.copies_of_what_is_handed_out += sum(copy.source in handed_out for copy in plan.copy)
        self.tally.evictions += len(plan.evict)
        self.tally.loads += len(plan.load)
        self.tally.steps += 1
        leave = int(self._scheduler.has_work and self._rng.random() < self._traffic.pipelined)
        while len(self._in_flight) > leave:
            self._commit()
        self.tally.steps_with_a_plan_in_flight += leave
        for number, want in self._open.items():
            assert self.tally.steps <= want.deadline, f"sequence {number} did not end within the bound"

    def _require_progress(self, plan: StepPlan, before: dict[int, int]) -> None:
        """Everything that ran and was not preempted advances; only the youngest yield; no step is idle for nothing."""
        computed = {span.sequence for span in plan.spans}
        stay = [number for number in before if self._runs(self._open[number])]
        yielded = [number for number in before if number not in stay]
        assert all(number in computed for number in stay if before[number])
        assert all(number > max(stay, default=-1) for number in yielded)
        if not (plan.computes or plan.load or plan.evict or self._in_flight):
            for want in self._open.values():
                held_up = len(self._engine.reading) >= self._limits.max_loads
                assert held_up or want.sequence.key in self._engine.reading, "a step is idle"

    def _require_tokens(self, plan: StepPlan, before: dict[int, int]) -> None:
        """Every span stands on its own sequence's tokens, whoever computed them; nothing is shared without a salt."""
        for span in plan.spans:
            want = self._open[span.sequence]
            found = self._engine.stood_on[span.sequence][: len(want.whole)]
            assert found == want.whole[: len(found)], "a block holds another sequence's tokens"
            if span.start and span.sequence not in before:
                assert self._limits.prompt_cache
                assert want.sequence.salt is not None
                self.tally.reused_after_a_preemption += span.start > len(want.prompt)

    def _require_order(self, plan: StepPlan, before: dict[int, int]) -> None:
        """Nobody that could run is passed, and nobody is let in while somebody is sent back."""
        newcomers = [span.sequence for span in plan.spans if span.sequence not in before]
        if not newcomers:
            return
        waiting = [want.sequence for want in self._open.values() if not self._runs(want)]
        assert all(s.id > max(newcomers) for s in waiting if self._engine.usable(s.key)), "somebody is passed"
        for source in self._engine.hosted.values():
            if source.kind.holds_kv and not self._engine.usable(source.key):
                assert all(s.id > max(newcomers) for s in waiting if s.key == source.key), "a prefix gets no room"
        yielded = [number for number in before if not self._runs(self._open[number])]
        assert not yielded or not any(self._runs(self._open[number]) for number in before)

    def _commit(self) -> None:
        plan, drawn = self._in_flight.popleft()
        for outcome in self._scheduler.commit(plan, drawn):
            want = self._open[outcome.sequence]
            if outcome.token != NO_TOKEN:
                want.drawn.append(outcome.token)
            if outcome.finish is not None:
                del self._open[outcome.sequence]
                self._require_answer(want, outcome.finish)

    def _require_answer(self, want: _Wanted, finish: FinishReason) -> None:
        sequence = want.sequence
        assert sequence.status is Status.FINISHED
        assert want.drawn == answer(want.prompt, sequence.params, sequence.adapter)
        assert sequence.tokens == want.prompt + want.drawn
        assert (finish is FinishReason.LENGTH) or want.drawn[-1] in (EOS, *sequence.params.stop_token_ids)
        assert (finish is FinishReason.STOP) or len(want.drawn) == sequence.params.max_tokens
        assert sorted(self._engine.rows.get(sequence.id, [])) == sorted(sequence.rows)
        assert self._engine.draws.get(sequence.id, 0) <= sequence.params.max_tokens, "a draw too many"
        waited = (self.tally.steps - want.added) / (want.deadline - want.added)
        self.tally.longest_wait_to_bound = max(self.tally.longest_wait_to_bound, waited)
        self._said = [*self._said[-2:], sequence.tokens]
        self.tally.finished += 1

    def _note_compile(self, plan: StepPlan) -> None:
        """At most one compile is unfinished after a step, and what is unfinished goes on before another begins."""
        self.tally.steps_with_many_compiles += len(plan.compile) > 1
        for span in plan.compile:
            assert span.prefix is not None
            key, end = span.prefix.key, span.start + len(span.tokens)
            if span.start == 0:
                self.tally.abandoned_compiles += self._compiling is not None
            else:
                assert self._compiling == (key, span.start)
            self._compiling = None if end == key.length else (key, end)

    def _require_idle(self) -> None:
        """Nothing is lost: only idle prefixes hold blocks, and once forgotten they hold none."""
        while self._reading:
            self._answer_loads()
            self._step()
        self._scheduler.check_integrity()
        self.tally.preemptions = self._scheduler.stats().preemptions
        self.tally.reused_tokens = self._scheduler.stats().cached_tokens
        for source in self._traffic.adapters:
            self._scheduler.forget(source.key.adapter)
        while self._scheduler.has_work:
            self._step()
        stats = self._scheduler.stats()
        assert (stats.blocks_used, stats.prefix_blocks_used, stats.resident) == (0, 0, 0)
        assert not self._engine.hosted

    def _runs(self, want: _Wanted) -> bool:
        return want.sequence.status is Status.RUNNING
