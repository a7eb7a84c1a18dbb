"""One stream of tokens in the engine, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

from server.core import AdapterSource, FinishReason, PrefixKey, SamplingParams
from server.engine.scheduler.plan import PENDING, Prefix


class Status(Enum):
    """Where a sequence is."""

    WAITING = auto()  # for its adapter, for memory or for its turn; also after a preemption
    RUNNING = auto()  # holds blocks and a reference to its prefix
    FINISHED = auto()  # ended, failed or aborted; holds nothing


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt that grows.

    `tokens` are segment B: the prompt's ids after the adapter's prefix, then every drawn token. `rows` are positions of
    prompt tokens whose logits are wanted besides those that sampling needs; each is asked for once, also when a
    preemption makes it be computed again. With `max_tokens == 0` the prompt is computed and nothing is drawn. Sequences
    with the same `salt` may reuse what others have computed for the same start; one without shares nothing.

    The scheduler owns everything below `salt`. Raises ValueError for a sequence without tokens, or rows outside the
    prompt.
    """

    id: int
    tokens: list[int]
    params: SamplingParams
    adapter: AdapterSource | None = None
    rows: frozenset[int] = frozenset()
    salt: str | None = None

    prompt_len: int = field(init=False)
    arrival: int = field(init=False, default=-1)  # order of `add`; the lower the older
    status: Status = field(init=False, default=Status.WAITING)
    computed: int = field(init=False, default=0)  # tokens of segment B that planned steps have computed
    pending: int = field(init=False, default=0)  # tokens that planned steps draw and that have not arrived yet
    reported: int = field(init=False, default=0)  # rows below this position have been asked for
    blocks: tuple[int, ...] = field(init=False, default=())
    prefix: Prefix | None = field(init=False, default=None)  # segment A while RUNNING
    names: list[bytes] = field(init=False, default_factory=list)  # of its full blocks, as far as they were asked for
    named: int = field(init=False, default=0)  # full blocks at its start that were reused, or offered for reuse
    fills_at: int = field(init=False, default=sys.maxsize)  # computed tokens that fill a block to offer for reuse
    counted: bool = field(init=False, default=False)  # whether it was asked what it reuses

    def __post_init__(self) -> None:
        self.prompt_len = len(self.tokens)
        if not self.tokens:
            raise ValueError("a sequence needs at least one token after its prefix")
        if any(not 0 <= row < self.prompt_len for row in self.rows):
            raise ValueError(f"rows must lie in the prompt of {self.prompt_len} tokens")

    @property
    def key(self) -> PrefixKey | None:
        """Key of the adapter's prefix, None for the base model alone."""
        return None if self.adapter is None else self.adapter.key

    @property
    def prefix_len(self) -> int:
        """Tokens of segment A."""
        return 0 if self.adapter is None else self.adapter.prefix_len

    @property
    def length(self) -> int:
        """Tokens of segment B, those in flight included."""
        return len(self.tokens) + self.pending

    @property
    def first_row(self) -> int:
        """Position of the first row that has not been asked for yet; beyond every position when there is none."""
        return min((row for row in self.rows if row >= self.reported), default=sys.maxsize)

    @property
    def left(self) -> int:
        """Tokens to compute before the next draw; 0 once the last token is drawn or being drawn."""
        length = len(self.tokens) + self.pending
        drawn = length - self.prompt_len
        if drawn and drawn >= self.params.max_tokens:
            return 0
        return length - self.computed

    def peek(self, count: int) -> tuple[int, ...]:
        """Return the next `count` tokens to compute; PENDING stands for one still being drawn."""
        end = self.computed + count
        known = tuple(self.tokens[self.computed : end])
        return known + (PENDING,) * (count - len(known))

    def advance(self, count: int) -> tuple[int, ...]:
        """Count `count` more tokens as computed; return the offsets among them whose rows are wanted."""
        start, self.computed = self.computed, self.computed + count
        if not self.rows or self.computed <= self.reported:
            return ()
        first = max(start, self.reported)
        self.reported = self.computed
        return tuple(i - start for i in range(first, self.computed) if i in self.rows)

    def append(self, token: int, eos_token_ids: Collection[int]) -> FinishReason | None:
        """Take in the drawn token; return why the sequence ends with it, None if it goes on.

        Ids that end a sequence count once `min_tokens` tokens were drawn before; the sampler masks them until then.
        """
        drawn_before = len(self.tokens) - self.prompt_len
        self.pending -= 1
        self.tokens.append(token)
        params = self.params
        if drawn_before >= params.min_tokens and (
            token in params.stop_token_ids or (token in eos_token_ids and not params.ignore_eos)
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if drawn_before + 1 >= params.max_tokens else None
