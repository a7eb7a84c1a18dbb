"""An engine that only remembers: it carries plans out on a KV memory whose every slot knows what was written to it."""

from __future__ import annotations

from collections.abc import Hashable

from server.core import AdapterKind, AdapterSource, PrefixKey, SamplingParams
from server.engine.scheduler.plan import PENDING, Copy, Span, StepPlan
from server.engine.scheduler.scheduler import Limits
from server.engine.scheduler.sequence import Sequence

VOCAB = 19
EOS = 0


def adapter(
    digest: str, length: int, *, kind: AdapterKind = AdapterKind.PROMPT_TUNING, needs_table: bool = False, task: int = 0
) -> AdapterSource:
    """An adapter whose prefix takes `length` tokens."""
    ids = () if kind.holds_kv else tuple(range(VOCAB, VOCAB + length))
    return AdapterSource(
        PrefixKey("base", digest, task, length), kind, f"{digest}.safetensors", "", max(length, 1), ids, needs_table
    )


def next_token(source: AdapterSource | None, history: list[int]) -> int:
    """What the model draws after these tokens of segment B: a function of them and of the adapter, nothing else."""
    state = 7 if source is None else sum(source.key.adapter.encode()) + 1000 * source.key.task
    return hash((state, *history)) % VOCAB


def answer(tokens: list[int], params: SamplingParams, source: AdapterSource | None) -> list[int]:
    """What a sequence that runs alone and undisturbed draws."""
    drawn: list[int] = []
    while len(drawn) < params.max_tokens:
        token = next_token(source, [*tokens, *drawn])
        ends = token in params.stop_token_ids or (token == EOS and not params.ignore_eos)
        allowed = len(drawn) >= params.min_tokens
        drawn.append(token)
        if ends and allowed:
            break
    return drawn


class SimulatedEngine:
    """Carries plans out in order and checks that each reads exactly what it should.

    A slot holds (whose, position, what a forward computes there: its token and a digest of all tokens up to it), or
    None once zeroed. Reading a slot that holds anything else, and writing to one that is not empty, fails; so what was
    copied from another block must be what computing it would have given. Tokens are drawn from what stands in memory,
    not from what the scheduler says. What sequences with one salt and one adapter wrote is theirs together; all else is
    one sequence's, or one prefix's.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.reading: dict[PrefixKey, AdapterSource] = {}
        self.hosted: dict[PrefixKey, AdapterSource] = {}
        self.filled: dict[PrefixKey, int] = {}  # tokens of each prefix that are in blocks
        self.rows: dict[int, list[int]] = {}
        self.draws: dict[int, int] = {}
        self.stood_on: dict[int, list[int]] = {}  # what each sequence's last span found in memory, and added
        self._memory: list[list[Hashable]] = [[("garbage",)] * limits.block_size for _ in range(limits.num_blocks)]
        self._blocks: dict[PrefixKey, tuple[int, ...]] = {}
        self._drawn: dict[int, int] = {}
        self._owners: dict[int, Hashable] = {}
        self._sources: dict[PrefixKey, AdapterSource] = {}

    def carry_out(self, plan: StepPlan) -> dict[int, int]:
        """Return the token that each sampling span draws."""
        self._require_budget(plan)
        for key in plan.evict:
            assert key in self.hosted, f"{key} is evicted and not held"
            del self.hosted[key]
            self.filled.pop(key, None)
        for source in plan.load:
            assert source.key not in self.reading
            assert source.key not in self.hosted
            self.reading[source.key] = self._sources[source.key] = source
        targets = [copy.target for copy in plan.copy]
        assert len({*plan.zero, *targets}) == len(plan.zero) + len(targets)
        for copy in plan.copy:
            self._copy(copy)
        for block in plan.zero:
            self._memory[block] = [None] * self.limits.block_size
        for install in plan.install:
            source = self.hosted[install.key]
            assert source.kind.holds_kv
            assert install.key not in self.filled, "a prefix is written twice"
            self._write(install.blocks, ("prefix", install.key), 0, tuple(range(source.prefix_len)))
            self.filled[install.key] = source.prefix_len
            self._blocks[install.key] = install.blocks
        for span in plan.compile:
            self._compile(span)
        drawn = {span.sequence: token for span in plan.spans if (token := self._run(span)) is not None}
        self._drawn = drawn
        return drawn

    def added(self, sequence: Sequence) -> None:
        """Learn with whom a sequence may share; one that was not told of shares with nobody."""
        if sequence.salt is not None:
            self._owners[sequence.id] = ("all with", sequence.salt, sequence.key)

    def loaded(self, key: PrefixKey) -> None:
        """The file is read."""
        self.hosted[key] = self.reading.pop(key)

    def usable(self, key: PrefixKey | None) -> bool:
        """Whether a sequence could run with this prefix."""
        return key is None or self.filled.get(key, -1) == key.length

    def waiting_in_host_memory(self) -> int:
        """Adapters whose file is being read, or is read and has filled no block."""
        partly = [key for key, source in self.hosted.items() if self.filled.get(key, 0) < source.prefix_len]
        return len(self.reading) + len(partly)

    def _require_budget(self, plan: StepPlan) -> None:
        tokens = sum(len(span.tokens) for span in plan.spans)
        compiled = sum(len(span.tokens) for span in plan.compile)
        assert compiled <= self.limits.step_tokens // 2
        assert self.limits.packed or len(plan.compile) <= 1
        tokens += compiled
        assert tokens <= self.limits.step_tokens
        assert len(plan.spans) <= self.limits.max_seqs
        assert len({span.sequence for span in plan.spans}) == len(plan.spans)
        assert all(span.tokens for span in plan.spans)

    def _copy(self, copy: Copy) -> None:
        size = self.limits.block_size
        assert 0 < copy.tokens < size
        copied = self._memory[copy.source][: copy.tokens]
        assert all(isinstance(slot, tuple) and slot[0][0] == "all with" for slot in copied), "nobody may copy this"
        self._memory[copy.target] = [*copied, *[None] * (size - copy.tokens)]

    def _compile(self, span: Span) -> None:
        assert span.prefix is not None
        assert (span.prefix.length, span.prefix.blocks) == (0, ())
        key = span.prefix.key
        source = self.hosted[key]
        end = span.start + len(span.tokens)
        if span.start == 0:
            self.filled.pop(key, None)  # begun again, in other blocks, after a compile was broken off
        assert span.start == self.filled.get(key, 0), "a chunk is missing or written twice"
        assert span.tokens == source.prefix_ids[span.start : end]
        if not self.limits.packed:
            whole = min(span.start + self.limits.step_tokens // 2, source.prefix_len)
            assert end == whole, "a chunk depends on the load"
        self._read(span.blocks, ("prefix", key), span.start, source.prefix_ids)
        self._write(span.blocks, ("prefix", key), span.start, span.tokens)
        self.filled[key] = end
        self._blocks[key] = span.blocks

    def _run(self, span: Span) -> int | None:
        source = None
        if span.prefix is not None:
            source = self.hosted[span.prefix.key]
            assert span.prefix.length == source.prefix_len
            if source.prefix_len:
                assert self.filled[source.key] == source.prefix_len, "a prefix is used before it is filled"
                assert span.prefix.blocks == self._blocks[source.key]
            ids = tuple(range(source.prefix_len)) if source.kind.holds_kv else source.prefix_ids
            self._read(span.prefix.blocks, ("prefix", source.key), source.prefix_len, ids)
        if PENDING in span.tokens:
            assert span.tokens.index(PENDING) == len(span.tokens) - 1
        tokens = tuple(self._drawn[span.sequence] if token == PENDING else token for token in span.tokens)
        owner = self._owners.get(span.sequence, ("sequence", span.sequence))
        history = self._read(span.blocks, owner, span.start) + list(tokens)
        self._write(span.blocks, owner, span.start, tokens)
        self.stood_on[span.sequence] = history
        assert all(0 <= row < len(tokens) for row in span.rows)
        self.rows.setdefault(span.sequence, []).extend(span.start + row for row in span.rows)
        if not span.samples:
            return None
        self.draws[span.sequence] = self.draws.get(span.sequence, 0) + 1
        return next_token(source, history)

    def _read(
        self, blocks: tuple[int, ...], owner: Hashable, length: int, tokens: tuple[int, ...] | None = None
    ) -> list[int]:
        size = self.limits.block_size
        found: list[int] = []
        digest = 0
        for position in range(length):
            slot = self._memory[blocks[position // size]][position % size]
            assert isinstance(slot, tuple)
            found.append(slot[2])
            digest = hash((digest, slot[2]))
            assert slot == (owner, position, slot[2], digest), f"{owner} reads {slot} at {position}"
        assert tokens is None or found == list(tokens[:length])
        return found

    def _write(self, blocks: tuple[int, ...], owner: Hashable, start: int, tokens: tuple[int, ...]) -> None:
        size = self.limits.block_size
        before = self._memory[blocks[(start - 1) // size]][(start - 1) % size] if start else None
        digest = before[3] if isinstance(before, tuple) else 0
        for position, token in enumerate(tokens, start):
            block = self._memory[blocks[position // size]]
            assert block[position % size] is None, f"{owner} writes over {block[position % size]}"
            digest = hash((digest, token))
            block[position % size] = (owner, position, token, digest)
