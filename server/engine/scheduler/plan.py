"""What the scheduler tells the engine to do in one step."""

from __future__ import annotations

from dataclasses import dataclass

from server.core import AdapterSource, PrefixKey

PENDING = -1
"""Stands in `Span.tokens` for the token that the plan still in flight is drawing for that sequence."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Segment A of a sequence: the adapter's shared, read-only KV."""

    key: PrefixKey
    length: int  # tokens
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence that one step computes.

    Token i of the span is token `start + i` of segment B and has absolute position `prefix.length + start + i`. Its
    keys and values go to segment B, whose `blocks` already cover `start + len(tokens)` tokens.
    """

    sequence: int
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    prefix: Prefix | None = None
    samples: bool = False  # a token is drawn from the last row's logits
    rows: tuple[int, ...] = ()  # offsets in the span whose logits are wanted besides


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the keys and values of a block's first `tokens` tokens to another block, and clear the rest of that.

    Both may be the same block: then only the rest is cleared.
    """

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Install:
    """Copy a loaded prefix KV from host memory into blocks."""

    key: PrefixKey
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, carried out in the order of these fields.

    Copies come before anything else is done to a block, and in their own order, because nobody keeps a source for
    them: it may be handed out and cleared in the same plan, and may even be the target of a later copy. What a source
    holds was written by earlier plans, as a block that this one hands out is no source any more. Targets are handed
    out by this plan and are not among `zero`: a copy leaves nothing of their former holder.

    A compile span's tokens are `prefix_ids` of an adapter, its blocks become the adapter's prefix, and its own prefix
    is empty and names the adapter. Each is a forward of its own, so that an adapter's KV never depends on who shared
    its batch; where a row's result never does (`Limits.packed`), they may join the forward of `spans`, which read at
    every layer what the compile spans have just written.
    """

    evict: tuple[PrefixKey, ...] = ()  # forget whatever is held for these
    load: tuple[AdapterSource, ...] = ()  # start reading these files in a thread
    copy: tuple[Copy, ...] = ()
    zero: tuple[int, ...] = ()  # the other blocks handed out since the last plan: clear them before use
    install: tuple[Install, ...] = ()
    compile: tuple[Span, ...] = ()
    spans: tuple[Span, ...] = ()  # one packed forward

    @property
    def computes(self) -> bool:
        """Whether the step has anything for the device to do."""
        return bool(self.spans or self.compile or self.install)
