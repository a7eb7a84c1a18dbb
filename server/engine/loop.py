"""The engine's one loop: drain the inbox, schedule, carry out, sample, commit, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

from torch import Tensor

from server.core import NO_TOKEN, AdapterSource, PrefixKey, PromptScores, Scoring, TokenEvent
from server.engine.grammars.masks import Masks, Start
from server.engine.messages import (
    Abort,
    Check,
    Failure,
    Forget,
    FromEngine,
    Moved,
    Pin,
    Started,
    StepReport,
    StepStats,
    Submit,
    ToEngine,
    Verify,
    VerifyResult,
)
from server.engine.model.launches import Launch
from server.engine.model.runner import LogitRow, Runner
from server.engine.model.sampler import Draw, DrawRequest, Sampler
from server.engine.model.scoring import Scored, rows_to_score, score
from server.engine.prefixes.read import AdapterTensors
from server.engine.scheduler.plan import Span, StepPlan
from server.engine.scheduler.scheduler import Outcome, Scheduler
from server.engine.scheduler.sequence import Sequence
from server.engine.trials import Canary, RowListener, Trial, Verification
from server.errors import AdapterRejected, ContextTooLong, EngineFault, WaybillError

_NOTHING = Draw(NO_TOKEN)
"""What a sequence with `max_tokens == 0` draws: it is there for its rows of logits."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file was read, or could not be; a loading thread leaves it in the inbox."""

    source: AdapterSource
    outcome: AdapterTensors | WaybillError


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sequence's grammar was read, or could not be; the thread that did it leaves this in the inbox."""

    message: Submit
    rows: frozenset[int]
    outcome: Start | WaybillError


@dataclass(frozen=True, slots=True)
class Read:
    """The file of an adapter that is to be verified was read, or could not be; a loading thread leaves it here."""

    message: Verify
    outcome: AdapterTensors | WaybillError


Internal = Loaded | Prepared | Read
"""What the engine's own threads leave in its inbox."""


@dataclass(slots=True)
class _Job:
    """What the engine remembers of a sequence beside the scheduler."""

    arrived: float
    prefix: PrefixKey | None
    trial: Trial | None = None
    started: bool = False
    scoring: Scoring | None = None
    on_row: RowListener | None = None


@dataclass(slots=True)
class _Holding:
    """What the engine holds for one resident adapter."""

    source: AdapterSource
    tensors: AdapterTensors
    ready_at: float


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that the device still computes, or whose tokens nobody has read yet."""

    plan: StepPlan
    launch: Launch


class Engine:
    """Owns the model, the sampler and the scheduler; never waits for a file or for a client.

    Where the runner can launch (on a GPU), a step in which everybody takes the likeliest token is launched before the
    tokens of the one before are read: the device never waits for Python.

    `read` turns an AdapterSource into tensors and raises WaybillError; it runs on `readers`. `masks` has threads for
    grammars. Everything else runs on the one thread that calls `step`. Only `inbox` may be used from other threads.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner,
        sampler: Sampler,
        read: Callable[[AdapterSource], AdapterTensors],
        readers: Executor,
        masks: Masks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox: SimpleQueue[ToEngine | Internal | None] = SimpleQueue()
        self._scheduler = scheduler
        self._runner = runner
        self._sampler = sampler
        self._read = read
        self._readers = readers
        self._masks = masks
        self._clock = clock
        self._jobs: dict[int, _Job] = {}
        self._held: dict[PrefixKey, _Holding] = {}
        self._outbox: list[FromEngine] = []
        self._failures: list[Failure] = []
        self._scores: tuple[PromptScores, ...] = ()
        self._cold_loads = 0
        self._stalled = False
        self._flight: _Flight | None = None

    def run(self, send: Callable[[FromEngine], None]) -> None:
        """Serve until None arrives in the inbox."""
        while True:
            for message in self.drain(block=self.waits):
                if message is None:
                    return
                self.handle(message)
            for reply in self.step():
                send(reply)

    def handle(self, message: ToEngine | Internal) -> None:
        """Take in one message; its effect shows in the next step."""
        match message:
            case Submit():
                self.submit(message)
            case Abort(sequence):
                self._end(sequence)
            case Check():
                self._try(Canary(message, self._runner.model.vocab_size))
            case Verify():
                # Read again: what is compared with shares nothing with what is served.
                self._readers.submit(self._load, message.adapter, partial(Read, message))
            case Forget(adapter):
                self._scheduler.forget(adapter)
            case Pin(adapter, pinned):
                self._scheduler.pin(adapter, pinned)
            case Loaded():
                self._loaded(message)
            case Read():
                self._verify(message)
            case Prepared():
                self._prepared(message)
            case _:
                raise ValueError(f"unexpected message {type(message).__name__}")

    def submit(self, message: Submit, *, rows: frozenset[int] = frozenset(), on_row: RowListener | None = None) -> None:
        """Queue a sequence. `on_row` gets the logits of every position that anything is told of, and of `rows`."""
        if message.scoring is not None:
            rows |= rows_to_score(message.tokens, message.scoring, self._runner.model.vocab_size)
        job = _Job(self._clock(), _key(message.adapter), scoring=message.scoring, on_row=on_row)
        self._add(message, job, rows)

    def step(self) -> list[FromEngine]:
        """Run one step, or launch it and take in the one before; return what there is to tell."""
        began = self._clock()
        plan = self._scheduler.schedule()
        self._prepare(plan)
        started = self._take_started(plan)
        landed = self._flight is not None
        if self._launches(plan):
            launch = self._runner.launch(plan.spans, self._tables(plan.spans))
            events, _ = self._land()
            self._flight = _Flight(plan, launch)
        else:
            before, carried = self._land()
            events = (*before, *self._commit(plan, self._compute(plan, carried)))
        self._stalled = not (landed or plan.computes or plan.load or plan.evict)
        scores, self._scores = self._scores, ()
        moved = tuple(Moved(key, resident) for key, resident in self._scheduler.take_moved().items())
        stats = self._stats(plan, began)
        self._outbox.append(StepReport(events, self._take_failures(), started, scores, moved, stats))
        outbox, self._outbox = self._outbox, []
        return outbox

    @property
    def waits(self) -> bool:
        """Whether nothing can be done before something arrives in the inbox."""
        return self._flight is None and (self._stalled or not self._scheduler.has_work)

    def drain(self, *, block: bool) -> Iterator[ToEngine | Internal | None]:
        """Yield what is in the inbox; with `block`, wait for the first."""
        try:
            yield self.inbox.get(block=block)
            while True:
                yield self.inbox.get_nowait()
        except Empty:
            return

    def _add(self, message: Submit, job: _Job, rows: frozenset[int] = frozenset()) -> None:
        self._jobs[message.sequence] = job
        grammar = message.params.grammar
        if grammar is not None and message.sequence not in self._masks:
            start = self._masks.known(grammar)
            if start is None:
                # It joins those that wait once its first mask is there: no step ever waits for a grammar to be read.
                self._masks.prepare(grammar, lambda outcome: self.inbox.put(Prepared(message, rows, outcome)))
                return
            self._masks.begin(message.sequence, start)
        try:
            self._scheduler.add(
                Sequence(message.sequence, list(message.tokens), message.params, message.adapter, rows, message.salt)
            )
        except ValueError as error:
            # Whatever of this the service could know it refused; it is the request's fault, and permanent.
            self._fail(message.sequence, ContextTooLong(str(error)))

    def _prepared(self, prepared: Prepared) -> None:
        sequence = prepared.message.sequence
        job = self._jobs.get(sequence)
        if job is None:  # aborted meanwhile
            return
        if isinstance(prepared.outcome, WaybillError):
            self._fail(sequence, prepared.outcome)
        else:
            self._masks.begin(sequence, prepared.outcome)
            self._add(prepared.message, job, prepared.rows)

    def _try(self, trial: Trial) -> None:
        job = _Job(self._clock(), _key(trial.submit.adapter), trial=trial, on_row=trial.on_row)
        self._add(trial.submit, job, trial.rows)

    def _verify(self, read: Read) -> None:
        if isinstance(read.outcome, WaybillError):
            error = read.outcome
            self._outbox.append(VerifyResult(read.message.verify, None, error.code, error.message))
        else:
            self._try(Verification(read.message, self._runner.model, read.outcome))

    def _prepare(self, plan: StepPlan) -> None:
        """Everything in the plan that comes before the packed forward, in the plan's order."""
        for key in plan.evict:
            self._held.pop(key, None)
        for source in plan.load:
            self._readers.submit(self._load, source, partial(Loaded, source))
        for copy in plan.copy:
            self._runner.backend.copy(copy.source, copy.target, copy.tokens)
        if plan.zero:
            self._runner.backend.zero(plan.zero)
        for install in plan.install:
            holding = self._held[install.key]
            assert holding.tensors.kv is not None, "the scheduler installs KV kinds only"
            self._runner.backend.install(install.blocks, holding.tensors.kv)
            self._settle(holding)
        if self._runner.network is None:
            for span in plan.compile:
                self._runner.forward([span], self._tables([span]))
            self._compiled(plan.compile)

    def _launches(self, plan: StepPlan) -> bool:
        """Whether the step's tokens can be drawn where they are computed, and read later."""
        if self._runner.graphs is None or not plan.spans:
            return False
        requests = [self._request(span) for span in plan.spans if span.samples]
        return self._wants_only_likeliest(plan, requests)

    def _land(self) -> tuple[tuple[TokenEvent, ...], dict[int, int]]:
        """Read and commit the step in flight; return its events, and its tokens by sequence."""
        flight, self._flight = self._flight, None
        if flight is None:
            return (), {}
        tokens, finite = flight.launch.read()
        draws = self._finite(flight.launch.sequences, self._sampler.take_likeliest(tokens, finite))
        return self._commit(flight.plan, draws), {sequence: draw.token for sequence, draw in draws.items()}

    def _commit(self, plan: StepPlan, drawn: dict[int, Draw]) -> tuple[TokenEvent, ...]:
        """Take in what a plan drew, and end what ends with it."""
        outcomes = self._scheduler.commit(plan, {sequence: draw.token for sequence, draw in drawn.items()})
        events = tuple(
            TokenEvent(out.sequence, out.token, out.finish, draw.logprob, draw.top_logprobs)
            for out in outcomes
            if not self._tried(out)
            for draw in (drawn.get(out.sequence, _NOTHING),)
        )
        for out in outcomes:
            if out.finish is not None:
                self._close(out.sequence)
        self._masks.advance({out.sequence: out.token for out in outcomes})
        return events

    def _compute(self, plan: StepPlan, carried: dict[int, int]) -> dict[int, Draw]:
        """Run the packed forward; return the draws by sequence. A sequence with non-finite logits fails alone.

        `carried` are the tokens of the step before, where this one was planned without them.
        """
        # The compiled decoder's result for a token never depends on the others, so virtual tokens may join them.
        joining = () if self._runner.network is None else plan.compile
        # Who ended with the step before has a span in a plan that was made meanwhile.
        mine = tuple(span for span in plan.spans if span.sequence in self._jobs)
        spans = (*joining, *mine)
        if not spans:
            return {}
        tables = self._tables(spans)
        sampling = [span for span in mine if span.samples]
        requests = [self._request(span) for span in sampling]
        if self._runner.network is not None and self._wants_only_likeliest(plan, requests):
            peaks, rows = self._runner.forward_best(spans, tables)
            self._compiled(joining)
            return self._finite(_sequences(sampling), self._sampler.take_likeliest(peaks.ids, peaks.finite))
        logits, rows = self._runner.forward(spans, tables, carried)
        self._compiled(joining)
        place = {row: index for index, row in enumerate(rows)}
        for (sequence, position), index in place.items():
            if (listener := self._jobs[sequence].on_row) is not None:
                listener(position, logits[index])
        drawn: dict[int, Draw] = {}
        if sampling:
            picked = [place[span.sequence, span.start + len(span.tokens) - 1] for span in sampling]
            chosen = logits if picked == list(range(len(rows))) else logits[picked]
            drawn = self._finite(_sequences(sampling), self._draw(chosen, requests))
        self._score(logits, rows)
        return drawn

    def _score(self, logits: Tensor, rows: list[LogitRow]) -> None:
        """Note what these rows say of prompts; after the draws, so that who fails is forgotten by the sampler too."""
        asked: dict[int, Scored] = {}
        for number in {row[0] for row in rows}:
            job = self._jobs.get(number)
            if job is not None and job.scoring is not None:
                sequence = self._scheduler.sequence(number)
                asked[number] = Scored(job.scoring, sequence.tokens, sequence.prompt_len)
        if asked:
            scores = score(logits, rows, asked)
            self._scores = scores.told
            for number in scores.faulty:
                self._fail_unfinite(number)

    def _draw(self, logits: Tensor, requests: list[DrawRequest]) -> list[Draw | None]:
        """Draw from `logits` [rows, vocab] under the masks of the grammars there are; who got none fails alone."""
        masks = self._masks.take(request.sequence for request in requests)
        rows = {row: masks[request.sequence] for row, request in enumerate(requests) if request.sequence in masks}
        allowed = {row: mask for row, mask in rows.items() if not isinstance(mask, WaybillError)}
        draws = self._sampler.draw(logits, requests, allowed)
        for row, mask in rows.items():
            if isinstance(mask, WaybillError):
                self._fail(requests[row].sequence, mask)
                draws[row] = _NOTHING
        return draws

    def _wants_only_likeliest(self, plan: StepPlan, requests: list[DrawRequest]) -> bool:
        """Whether nobody looks at the logits beyond the likeliest token."""
        return all(self._sampler.is_greedy(request) for request in requests) and not any(
            span.rows or self._jobs[span.sequence].on_row for span in plan.spans
        )

    def _finite(self, sequences: Iterable[int], draws: Iterable[Draw | None]) -> dict[int, Draw]:
        """Return the draws by sequence; a sequence whose logits are not finite fails, unless it is gone already."""
        finite: dict[int, Draw] = {}
        for sequence, draw in zip(sequences, draws, strict=True):
            if draw is not None:
                finite[sequence] = draw
            elif sequence in self._jobs:
                self._fail_unfinite(sequence)
        return finite

    def _fail_unfinite(self, sequence: int) -> None:
        kind = EngineFault if self._jobs[sequence].prefix is None else AdapterRejected
        self._fail(sequence, kind("the model's output is not finite for this request"))

    def _tables(self, spans: Iterable[Span]) -> dict[PrefixKey, Tensor]:
        """Return the tables that virtual tokens in these spans may name rows of."""
        keys = {span.prefix.key for span in spans if span.prefix is not None}
        return {key: table for key in keys if (table := self._held[key].tensors.table) is not None}

    def _compiled(self, spans: Iterable[Span]) -> None:
        """Chunks of virtual tokens have been through the model; their KV stays in the blocks as prefixes."""
        for span in spans:
            assert span.prefix is not None, "a compile span names its adapter"
            holding = self._held[span.prefix.key]
            if span.start + len(span.tokens) == holding.source.prefix_len:
                self._settle(holding)

    def _request(self, span: Span) -> DrawRequest:
        sequence = self._scheduler.sequence(span.sequence)
        drawn_before = span.start + len(span.tokens) - sequence.prompt_len
        return DrawRequest(span.sequence, sequence.params, drawn_before, sequence.tokens, sequence.prompt_len)

    def _load(self, source: AdapterSource, left: Callable[[AdapterTensors | WaybillError], Loaded | Read]) -> None:
        """Read a file and leave what came of it in the inbox. Runs on a reader thread."""
        outcome: AdapterTensors | WaybillError
        try:
            outcome = self._read(source)
        except WaybillError as error:
            outcome = error
        except Exception as error:  # a reader must answer whatever happens, or who waits would wait for ever
            outcome = EngineFault(f"loading failed: {error}")
        self.inbox.put(left(outcome))

    def _loaded(self, loaded: Loaded) -> None:
        key = loaded.source.key
        self._cold_loads += 1
        if isinstance(loaded.outcome, WaybillError):
            for sequence in self._scheduler.prefix_failed(key):
                self._fail(sequence, loaded.outcome)
        else:
            self._held[key] = _Holding(loaded.source, loaded.outcome, self._clock())
            self._scheduler.prefix_loaded(key)

    def _settle(self, holding: _Holding) -> None:
        """The prefix is in blocks: keep only what requests still need from host memory."""
        if not holding.source.needs_table:
            holding.tensors = AdapterTensors()
        holding.ready_at = self._clock()

    def _tried(self, out: Outcome) -> bool:
        """Whether the sequence is a trial; then its end is a verdict, and its tokens are no events."""
        trial = self._jobs[out.sequence].trial
        if trial is None:
            return False
        trial.drew(out.token)
        if out.finish is not None:
            self._outbox.append(trial.end(None))
        return True

    def _fail(self, sequence: int, error: WaybillError) -> None:
        job = self._jobs.get(sequence)
        if job is None:
            return
        if job.trial is not None:
            self._outbox.append(job.trial.end(error))
            if isinstance(job.trial, Canary) and job.prefix is not None:
                self._scheduler.forget(job.prefix.adapter)
        else:
            self._failures.append(Failure(sequence, error.code, error.message))
        self._end(sequence)

    def _end(self, sequence: int) -> None:
        self._scheduler.abort(sequence)
        self._close(sequence)

    def _close(self, sequence: int) -> None:
        self._jobs.pop(sequence, None)
        self._sampler.forget(sequence)
        self._masks.forget(sequence)

    def _take_failures(self) -> tuple[Failure, ...]:
        failures, self._failures = tuple(self._failures), []
        return failures

    def _take_started(self, plan: StepPlan) -> tuple[Started, ...]:
        """First spans of this plan, with how long each sequence waited, and for its adapter's sake."""
        now = self._clock()
        started = []
        for span in plan.spans:
            job = self._jobs.get(span.sequence)
            if job is None or job.started or job.trial is not None:
                continue
            job.started = True
            ready_at = self._held[job.prefix].ready_at if job.prefix is not None else job.arrived
            load = max(0.0, ready_at - job.arrived)
            # A first span begins behind the tokens that need not be computed.
            started.append(Started(span.sequence, (now - job.arrived) * 1e3, load * 1e3, span.start))
        return tuple(started)

    def _stats(self, plan: StepPlan, began: float) -> StepStats:
        keys = {span.prefix.key if span.prefix is not None else None for span in plan.spans}
        kinds = {self._held[key].source.kind if key is not None else None for key in keys}
        book = self._scheduler.stats()
        return StepStats(
            running=book.running,
            waiting=book.waiting,
            batch_sequences=len(plan.spans),
            batch_tokens=sum(len(span.tokens) for span in plan.spans),
            batch_adapters=len(keys - {None}),
            batch_kinds=len(kinds),
            blocks_used=book.blocks_used,
            blocks_total=book.blocks_total,
            prefix_blocks_used=book.prefix_blocks_used,
            resident_adapters=book.resident,
            cold_loads=self._cold_loads,
            preemptions=book.preemptions,
            asked_tokens=book.asked_tokens,
            cached_tokens=book.cached_tokens,
            step_ms=(self._clock() - began) * 1e3,
        )


def _sequences(spans: Iterable[Span]) -> list[int]:
    return [span.sequence for span in spans]


def _key(adapter: AdapterSource | None) -> PrefixKey | None:
    return None if adapter is None else adapter.key
