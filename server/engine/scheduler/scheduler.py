"""Decides what each step computes: one budget of tokens, one pool of blocks, the oldest first.

Every sequence has a length and a count of computed tokens; a step hands out tokens until they meet. Prefill, chunked
prefill, decode and resuming after a preemption are that one rule. Counts advance at `schedule`, token values arrive at
`commit`, so one plan may be in flight while the next is made. Plans are carried out in the order they were made, so a
plan may hand out again what the one before still reads.

In how many steps everything ends: see `server.engine.scheduler.limits`.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from server.core import NO_TOKEN, AdapterSource, FinishReason, PrefixKey
from server.engine.scheduler.blocks import BlockAllocator
from server.engine.scheduler.limits import Limits
from server.engine.scheduler.plan import Copy, Install, Prefix, Span, StepPlan
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.residency import Entry, Residency
from server.engine.scheduler.sequence import Sequence, Status
from server.engine.scheduler.waiting import Turns, Waiting

__all__ = ["COMPILES", "Limits", "Outcome", "Scheduler", "Stats"]

COMPILES = -1
"""The sequence id of a compile span."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step brought one sequence."""

    sequence: int
    token: int
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Gauges, and counts since the start."""

    running: int
    waiting: int
    blocks_used: int
    blocks_total: int
    prefix_blocks_used: int
    resident: int  # adapters whose prefix sequences can use now
    loads: int  # since start
    preemptions: int  # since start
    asked_tokens: int  # since start: prompt tokens of sequences that may reuse blocks
    cached_tokens: int  # since start: of these, tokens that earlier sequences had computed


@dataclass(frozen=True, slots=True)
class _Flight:
    """What to do once a plan was carried out."""

    drawn: list[Sequence]  # those that the plan computes to their end
    filled: list[Sequence]  # those that may have blocks to offer for reuse by then


@dataclass(slots=True)
class _Draft:
    """A plan being made."""

    budget: int
    compile_budget: int  # of `budget`
    spans: list[Span] = field(default_factory=list)
    flight: _Flight = field(default_factory=lambda: _Flight([], []))
    copy: list[Copy] = field(default_factory=list)
    install: list[Install] = field(default_factory=list)
    compile: list[Span] = field(default_factory=list)
    preempted: bool = False


class Scheduler:
    """Owns every sequence, every block and the residency book; touches no tensor.

    `table_blocks` says how many blocks an adapter's table counts for; by default tables are free.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        eos_token_ids: Collection[int] = (),
        table_blocks: Callable[[AdapterSource], int] = lambda source: 0,
    ) -> None:
        self._limits = limits
        self._eos_token_ids = frozenset(eos_token_ids)
        self._blocks = BlockAllocator(limits.num_blocks, limits.block_size)
        self._waiting = Waiting()
        self._residency = Residency(
            self._blocks,
            self._waiting,
            prefix_blocks=limits.prefix_blocks,
            max_loads=limits.max_loads,
            table_blocks=table_blocks,
        )
        self._cache = PromptCache(self._blocks, enabled=limits.prompt_cache)
        self._turns = Turns(self._waiting, self._residency.is_ready)
        self._running: list[Sequence] = []  # oldest first
        self._sequences: dict[int, Sequence] = {}
        self._in_flight: deque[tuple[StepPlan, _Flight]] = deque()
        self._arrivals = 0
        self._preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether the next plan may hold something, now or once an adapter is loaded."""
        return bool(self._sequences) or self._residency.has_evictions

    def sequence(self, sequence: int) -> Sequence:
        """Return an unfinished sequence. Raises KeyError for others."""
        return self._sequences[sequence]

    def stats(self) -> Stats:
        """Return the gauges."""
        return Stats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks_used=self._blocks.used,
            blocks_total=self._blocks.num_blocks,
            prefix_blocks_used=self._residency.charge_used,
            resident=self._residency.resident,
            loads=self._residency.loads,
            preemptions=self._preemptions,
            asked_tokens=self._cache.asked,
            cached_tokens=self._cache.found,
        )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ValueError for an id in use, or a sequence that could never fit."""
        if sequence.id in self._sequences or sequence.id < 0:
            raise ValueError(f"sequence id {sequence.id} is in use")
        total = sequence.prefix_len + sequence.prompt_len + sequence.params.max_tokens
        if total > self._limits.max_model_len:
            raise ValueError(f"{total} tokens are more than max_model_len {self._limits.max_model_len}")
        if sequence.adapter is not None:
            charge = self._residency.charge(sequence.adapter)
            if charge > self._limits.prefix_blocks:
                raise ValueError(
                    f"the adapter takes {charge} blocks, and prefixes may take {self._limits.prefix_blocks}"
                )
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._sequences[sequence.id] = sequence
        self._waiting.add(sequence)
        self._queue(sequence)

    def abort(self, sequence: int) -> bool:
        """End a sequence and free its memory, also with a plan in flight. False when it is not unfinished."""
        found = self._sequences.get(sequence)
        if found is not None:
            self._end(found)
        return found is not None

    def prefix_loaded(self, key: PrefixKey) -> None:
        """A file that a plan asked for is in host memory. Raises ValueError when none asked."""
        self._residency.loaded(key)

    def prefix_failed(self, key: PrefixKey) -> list[int]:
        """A file cannot be used: end the sequences that wait for it and return their ids. A later one tries again.

        Raises ValueError when no plan asked for the file.
        """
        self._residency.failed(key)
        failed = self._waiting.line(key)
        for sequence in failed:
            self._waiting.remove(sequence)
            self._close(sequence)
        return [sequence.id for sequence in failed]

    def forget(self, adapter: str) -> None:
        """Evict every prefix of this adapter digest once no sequence uses it or waits for it."""
        self._residency.forget(adapter)

    def pin(self, adapter: str, pinned: bool) -> None:
        """Let the prefixes of this adapter digest be evicted last of all, or no longer."""
        self._residency.pin(adapter, pinned)

    def take_moved(self) -> dict[PrefixKey, bool]:
        """Return which prefixes came or went since this was last asked, and whether sequences can use them now."""
        return self._residency.take_moved()

    def schedule(self) -> StepPlan:
        """Decide the next step. Raises RuntimeError when two plans are in flight already."""
        if len(self._in_flight) > 1:
            raise RuntimeError("two plans are in flight: commit one first")
        self._residency.begin_plan()
        reserved = self._compile_budget()
        draft = _Draft(self._limits.step_tokens - reserved, self._limits.compile_tokens)
        self._advance(draft)
        draft.budget += reserved
        self._compile(draft)
        if not (draft.preempted and self._running):  # what older ones took back is not for those that wait
            self._admit(draft)
        loads = self._residency.take_loads()
        copied = {copy.target for copy in draft.copy}
        plan = StepPlan(
            evict=self._residency.take_evicted(),
            load=loads,
            copy=tuple(draft.copy),
            zero=tuple(block for block in self._blocks.take_handed_out() if block not in copied),
            install=tuple(draft.install),
            compile=tuple(draft.compile),
            spans=tuple(draft.spans),
        )
        self._in_flight.append((plan, draft.flight))
        return plan

    def commit(self, plan: StepPlan, sampled: Mapping[int, int]) -> list[Outcome]:
        """Take in what the oldest plan in flight drew: token by sequence id, for every span that samples.

        Tokens of sequences that ended meanwhile are discarded and may be absent. Raises ValueError for another plan.
        """
        if not self._in_flight or self._in_flight[0][0] is not plan:
            raise ValueError("plans are committed once, in the order they were made")
        outcomes = []
        flight = self._in_flight.popleft()[1]
        for sequence in flight.filled:
            if sequence.status is Status.RUNNING:
                self._cache.keep(sequence)
        for sequence in flight.drawn:
            if sequence.status is Status.FINISHED:
                continue
            first = len(sequence.tokens) == sequence.prompt_len
            if sequence.params.max_tokens:
                token = sampled[sequence.id]
                finish = sequence.append(token, self._eos_token_ids)
            else:
                token, finish = NO_TOKEN, FinishReason.LENGTH
            if finish is not None:
                self._end(sequence)
            elif first and sequence.status is Status.RUNNING:
                self._cache.keep_all(sequence)  # others may go on from the same prompt
            outcomes.append(Outcome(sequence.id, token, finish))
        return outcomes

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every block's holders and every prefix's references are counted."""
        held = [block for sequence in self._running for block in sequence.blocks]
        self._blocks.check_integrity([*held, *self._residency.held_blocks()])
        used = [sequence.key for sequence in self._running if sequence.key is not None]
        if any(self._residency.references(key) != used.count(key) for key in used):
            raise RuntimeError("references to prefixes are miscounted")

    def _advance(self, draft: _Draft) -> None:
        """Give every running sequence its next tokens, the oldest first and one at least to each."""
        running = self._running
        for index, sequence in enumerate(running):  # which loses its tail when a sequence is preempted
            left, room = sequence.left, draft.budget - (len(running) - index - 1)
            count = left if left < room else room
            if count and self._grow(draft, sequence, count):
                self._span(draft, sequence, count, reaches_end=count == left)

    def _grow(self, draft: _Draft, sequence: Sequence, count: int) -> bool:
        """Get a block for its next tokens from whoever is younger; False if it had to yield itself.

        One is enough: admission gives blocks for all tokens known then, and a draw adds one.
        """
        need = self._blocks.blocks_for(sequence.computed + count) - len(sequence.blocks)
        if need <= 0:
            return True
        while not self._residency.make_room(need, 0, sequence.arrival):
            youngest = self._running[-1]
            if youngest is sequence and self._residency.cancel_compile(sequence.arrival):
                continue
            self._preempt(youngest)
            draft.preempted = True
            if youngest is sequence:
                return False
        sequence.blocks += self._blocks.allocate(need) or ()
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take the youngest running sequence's blocks back; its tokens are kept and computed again later."""
        self._running.remove(sequence)
        self._waiting.add_front(sequence)
        self._release(sequence)
        sequence.status = Status.WAITING
        sequence.computed = 0
        self._queue(sequence)
        self._preemptions += 1

    def _first_in_line(self, *, may_compile: bool) -> Entry | Sequence | None:
        """Return the loaded prefix, or the sequence whose prefix is ready, that stands for the oldest arrival."""
        entry = self._residency.first_loaded(may_compile=may_compile)
        head = self._turns.first()
        if entry is None or (head is not None and head.arrival < self._waiting.claim(entry.key)):
            return head
        return entry

    def _compile_budget(self) -> int:
        """Tokens to keep for compiling in this step."""
        entry = self._residency.compiling
        if entry is None:
            first = self._first_in_line(may_compile=True)
            if not isinstance(first, Entry) or not first.compiles or not self._residency.has_room_for(first):
                return 0
            entry = first
        wanted = self._residency.to_compile if self._limits.packed else entry.source.prefix_len - entry.computed
        return min(wanted, self._limits.compile_tokens)

    def _may_compile(self, draft: _Draft) -> bool:
        """Whether the plan takes another compile."""
        if self._residency.compiling is not None:
            return False
        return draft.compile_budget > 0 if self._limits.packed else not draft.compile

    def _compile(self, draft: _Draft) -> None:
        """Hand out the next chunk of the compile in progress."""
        entry = self._residency.compiling
        if entry is None:
            return
        start = entry.computed
        tokens = entry.source.prefix_ids[start : start + min(draft.compile_budget, draft.budget)]
        draft.compile.append(Span(COMPILES, start, tokens, entry.blocks, Prefix(entry.key, 0, ())))
        draft.budget -= len(tokens)
        draft.compile_budget -= len(tokens)
        if self._residency.compiled(len(tokens)):
            self._turns.push(entry.key)

    def _admit(self, draft: _Draft) -> None:
        """Serve the line, the oldest first, until one gets no room: nothing passes it."""
        while True:
            first = self._first_in_line(may_compile=self._may_compile(draft))
            if first is None:
                return
            served = self._fill(draft, first) if isinstance(first, Entry) else self._start(draft, first)
            if not served:
                return

    def _fill(self, draft: _Draft, entry: Entry) -> bool:
        """Give a loaded prefix its blocks, and fill them or begin to."""
        if entry.compiles:
            least = 1 if self._limits.packed else min(entry.source.prefix_len, self._limits.compile_tokens)
            if draft.budget < least:
                return False
        if not self._residency.start(entry):
            return False
        if entry.compiles:
            self._compile(draft)
        else:
            if entry.blocks:
                draft.install.append(Install(entry.key, entry.blocks))
            self._turns.push(entry.key)
        return True

    def _start(self, draft: _Draft, sequence: Sequence) -> bool:
        """Let a sequence run: blocks for all its tokens at once, and room for each running sequence to grow by one."""
        if not draft.budget or len(self._running) >= self._limits.max_seqs:
            return False
        found = self._cache.find(sequence)
        need = self._blocks.blocks_for(sequence.length) - len(found.blocks)
        taken = need + self._blocks.unheld(found.blocks)
        if not self._residency.make_room(taken + len(self._running), 0, sequence.arrival):
            return False
        self._waiting.remove(sequence)
        if sequence.key is not None:
            sequence.prefix = self._residency.acquire(sequence.key)
        self._blocks.share(found.blocks)
        self._cache.admitted(sequence, found)
        fresh = self._blocks.allocate(need) or ()
        if found.tokens:
            draft.copy.append(Copy(found.source, fresh[0], found.tokens))
        sequence.blocks = found.blocks + fresh
        sequence.status = Status.RUNNING
        insort(self._running, sequence, key=lambda other: other.arrival)
        count = min(sequence.left, draft.budget)
        self._span(draft, sequence, count, reaches_end=count == sequence.left)
        return True

    def _span(self, draft: _Draft, sequence: Sequence, count: int, *, reaches_end: bool) -> None:
        """Hand out a sequence's next `count` tokens, whose blocks it has."""
        start, tokens = sequence.computed, sequence.peek(count)
        samples = reaches_end and sequence.params.max_tokens > 0
        rows = sequence.advance(count)
        sequence.pending += samples
        draft.spans.append(Span(sequence.id, start, tokens, sequence.blocks, sequence.prefix, samples, rows))
        if reaches_end:
            draft.flight.drawn.append(sequence)
        if sequence.computed >= sequence.fills_at:
            draft.flight.filled.append(sequence)
        draft.budget -= count

    def _queue(self, sequence: Sequence) -> None:
        """Note that a sequence may have come to stand at the head of its line."""
        if sequence.adapter is not None:
            self._residency.want(sequence.adapter)
        self._turns.push(sequence.key)

    def _release(self, sequence: Sequence) -> None:
        self._cache.keep_all(sequence)
        self._blocks.release(sequence.blocks)
        sequence.blocks, sequence.prefix = (), None
        if sequence.key is not None:
            self._residency.release(sequence.key)

    def _end(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
            if sequence.key is not None:
                self._residency.settle(sequence.key)
        self._close(sequence)

    def _close(self, sequence: Sequence) -> None:
        sequence.status = Status.FINISHED
        del self._sequences[sequence.id]
