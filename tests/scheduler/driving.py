"""Small steps for tests that tell one story: add, step, load, and look at what was planned."""

from __future__ import annotations

from collections.abc import Collection

from server.core import AdapterSource, FinishReason, SamplingParams
from server.engine.scheduler.plan import Span, StepPlan
from server.engine.scheduler.scheduler import Limits, Outcome, Scheduler
from server.engine.scheduler.sequence import Sequence
from tests.scheduler.simulation import EOS, SimulatedEngine

DRAWN = 5
"""What every draw gives, unless a test says otherwise."""


class Story:
    """A scheduler with a simulated engine, driven step by step. Files are read only when the test says so."""

    def __init__(
        self,
        *,
        max_seqs: int = 4,
        step_tokens: int = 16,
        max_model_len: int = 40,
        num_blocks: int = 40,
        block_size: int = 4,
        prefix_blocks: int = 20,
        max_loads: int = 8,
        packed: bool = False,
        prompt_cache: bool = True,
    ) -> None:
        self.limits = Limits(
            max_seqs,
            step_tokens,
            max_model_len,
            num_blocks,
            block_size,
            min(prefix_blocks, num_blocks),
            max_loads,
            packed,
            prompt_cache,
        )
        self.scheduler = Scheduler(
            self.limits, eos_token_ids=(EOS,), table_blocks=lambda source: int(source.needs_table)
        )
        self.engine = SimulatedEngine(self.limits)
        self._number = 0

    def add(
        self,
        prompt: int | list[int],
        max_tokens: int = 4,
        source: AdapterSource | None = None,
        *,
        rows: Collection[int] = (),
        salt: str | None = None,
        **params: object,
    ) -> Sequence:
        """Add a sequence with a prompt of these tokens, or of so many; ids count from 0."""
        sequence = Sequence(
            self._number,
            list(range(1, prompt + 1)) if isinstance(prompt, int) else list(prompt),
            SamplingParams(max_tokens=max_tokens, ignore_eos=True, **params),  # type: ignore[arg-type]
            source,
            frozenset(rows),
            salt,
        )
        self.scheduler.add(sequence)
        self.engine.added(sequence)
        self._number += 1
        return sequence

    def plan(self) -> StepPlan:
        """Make a plan and carry it out, without committing it."""
        plan = self.scheduler.schedule()
        self.drawn = self.engine.carry_out(plan)
        return plan

    def step(self) -> StepPlan:
        """Make a plan, carry it out, commit it."""
        plan = self.plan()
        self.commit(plan)
        self.scheduler.check_integrity()
        return plan

    def commit(self, plan: StepPlan, token: int = DRAWN) -> list[Outcome]:
        """Commit a plan; every draw of it gave `token`, as far as the scheduler knows."""
        return self.scheduler.commit(plan, {span.sequence: token for span in plan.spans if span.samples})

    def load(self, *sources: AdapterSource) -> None:
        """The files of these adapters, which a plan asked for, are read."""
        for source in sources:
            self.engine.loaded(source.key)
            self.scheduler.prefix_loaded(source.key)

    def finish(self) -> dict[int, FinishReason]:
        """Step until nothing is left; loads are answered at once. Returns why each sequence ended."""
        ends: dict[int, FinishReason] = {}
        while self.scheduler.has_work:
            plan = self.plan()
            for outcome in self.scheduler.commit(plan, self.drawn):
                if outcome.finish is not None:
                    ends[outcome.sequence] = outcome.finish
            for key in list(self.engine.reading):
                self.load(self.engine.reading[key])
        return ends


def chunks(*plans: StepPlan) -> list[tuple[int, int]]:
    """Start and length of every compile span, in order."""
    return [(span.start, len(span.tokens)) for plan in plans for span in plan.compile]


def spans(plan: StepPlan) -> dict[int, Span]:
    """The plan's spans by sequence."""
    return {span.sequence: span for span in plan.spans}
