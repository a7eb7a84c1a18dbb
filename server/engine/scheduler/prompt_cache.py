"""What earlier sequences computed, found again by every token up to it: full blocks to share, parts of one to copy."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from server.engine.scheduler.blocks import BlockAllocator
from server.engine.scheduler.sequence import Sequence

DIGEST_BYTES = 32
"""Of a block's name. Two starts with one name would answer from each other's text; at 256 bits nobody can make two."""

COMPARED = 8
"""Blocks that are looked at for the longest common start. What many prompts have in common, the newest have too."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a sequence need not compute: full `blocks`, and the first `tokens` tokens of the block `source`."""

    blocks: tuple[int, ...] = ()
    source: int = -1
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Start:
    """What a listed block holds from its start on, and its name as long as it holds that."""

    name: bytes
    tokens: array[int]


class PromptCache:
    """Names the blocks of segment B, and finds them for later sequences that start alike.

    A block's name is a hash of its tokens and of the name before it. The first is rooted in the sequence's salt and in
    the adapter's key, also where the adapter has no prefix: its virtual tokens have the same ids as every other's. So
    a block is found only by sequences for which a forward would fill it alike, and never across salts. Sequences
    without a salt find nothing and leave nothing.

    A full block is shared. A block that a sequence left unfinished has a name of its own, by the tokens that it holds,
    so it is kept as long as a full one is. Where no full block fits, the next one's tokens are compared with those of
    blocks that follow the same start: what the two have in common is copied into the sequence's own block, since a
    shared block is never written to. Nobody holds the source meanwhile, so it makes nobody wait; `StepPlan` says why
    what it held is still there when it is copied. A running sequence may go on filling a block that was named when it
    held less: those tokens stay what they are.

    A key or value depends on the tokens up to its own and on nothing else. Where a token's result never depends on its
    batch (`Limits.packed`), a copy holds the very bits that computing would give; elsewhere it differs as a result does
    between two batches.
    """

    def __init__(self, blocks: BlockAllocator, *, enabled: bool) -> None:
        """Name blocks of this pool; a cache that is not `enabled` treats every sequence as one without a salt."""
        self.asked = 0  # prompt tokens of sequences that may reuse what was computed
        self.found = 0  # of these, tokens that were computed before
        self._blocks = blocks
        self._enabled = enabled
        # Blocks by what comes before them and by their first token, the newest last. One that lost its name stays
        # listed until it gets another, so there are never more than the pool has.
        self._starts: dict[tuple[bytes, int], dict[int, _Start]] = {}
        self._listed: dict[int, tuple[bytes, int]] = {}

    def find(self, sequence: Sequence) -> Found:
        """Return what holds the start of a waiting sequence.

        At least the last token is left to compute, and so is every token from the first whose row is still wanted.
        """
        if not self._serves(sequence):
            return Found()
        size = self._blocks.block_size
        limit = min(sequence.length - 1, sequence.first_row, len(sequence.tokens))
        found: list[int] = []
        for index in range(limit // size):
            block = self._blocks.find(self._name(sequence, index))
            if block is None:
                break
            found.append(block)
        start = len(found) * size
        rest = sequence.tokens[start : min(start + size, limit)]
        source, tokens = self._longest(self._before(sequence, len(found)), rest) if rest else (-1, 0)
        return Found(tuple(found), source, tokens)

    def admitted(self, sequence: Sequence, found: Found) -> None:
        """A sequence starts to run with what was found for it."""
        size, reused = self._blocks.block_size, len(found.blocks)
        sequence.computed = reused * size + found.tokens
        if found.tokens:
            self._blocks.touch(found.source)
        if not self._serves(sequence):
            return
        sequence.named, sequence.fills_at = reused, (reused + 1) * size
        if not sequence.counted:
            sequence.counted = True
            self.asked += sequence.prompt_len
            self.found += sequence.computed

    def keep(self, sequence: Sequence) -> None:
        """Name the full blocks of a running sequence, as far as its tokens are known.

        A plan in flight may not have filled the last yet; it will have when a later plan reads them.
        """
        size = self._blocks.block_size
        full = min(sequence.computed, len(sequence.tokens)) // size
        for index in range(sequence.named, full):
            self._offer(sequence, index, size, self._name(sequence, index))
        sequence.named, sequence.fills_at = full, (full + 1) * size

    def keep_all(self, sequence: Sequence) -> None:
        """Name also the last block of a running sequence, by as many tokens as it holds."""
        if not self._serves(sequence):
            return
        self.keep(sequence)
        index, size = sequence.named, self._blocks.block_size
        count = min(sequence.computed, len(sequence.tokens)) - index * size
        if count:
            tokens = array("q", sequence.tokens[index * size : index * size + count])
            self._offer(sequence, index, count, _hash(self._before(sequence, index), tokens))

    def _offer(self, sequence: Sequence, index: int, count: int, name: bytes) -> None:
        """Let a block be found by its first `count` tokens, unless another block is found by the same."""
        block = sequence.blocks[index]
        if not self._blocks.name(block, name):
            return
        if (place := self._listed.pop(block, None)) is not None:
            alike = self._starts[place]
            del alike[block]
            if not alike:
                del self._starts[place]
        start = index * self._blocks.block_size
        tokens = array("q", sequence.tokens[start : start + count])
        place = (self._before(sequence, index), tokens[0])
        self._starts.setdefault(place, {})[block] = _Start(name, tokens)
        self._listed[block] = place

    def _longest(self, before: bytes, wanted: list[int]) -> tuple[int, int]:
        """Return the block behind the name `before` that begins most like `wanted`, and how many tokens are alike."""
        best = (-1, 0)
        alike = self._starts.get((before, wanted[0]), {})
        for block, start in islice(reversed(alike.items()), COMPARED):
            if not self._blocks.has_name(block, start.name):
                continue
            pairs = enumerate(zip(start.tokens, wanted, strict=False))
            count = next((i for i, (one, other) in pairs if one != other), min(len(start.tokens), len(wanted)))
            if count > best[1]:
                best = (block, count)
        return best

    def _serves(self, sequence: Sequence) -> bool:
        return self._enabled and sequence.salt is not None

    def _before(self, sequence: Sequence, index: int) -> bytes:
        """Return the name before a block: of the one that it follows, or the root."""
        return self._name(sequence, index - 1) if index else self._root(sequence)

    def _name(self, sequence: Sequence, index: int) -> bytes:
        """Return the name of a full block whose tokens are known; those before it are named on the way."""
        names, size = sequence.names, self._blocks.block_size
        while len(names) <= index:
            start = len(names) * size
            before = names[-1] if names else self._root(sequence)
            names.append(_hash(before, array("q", sequence.tokens[start : start + size])))
        return names[index]

    def _root(self, sequence: Sequence) -> bytes:
        """Sequences without an adapter have no key: what one process computes is by one base model."""
        key = sequence.key
        adapter = None if key is None else (key.base, key.adapter, key.task, key.length)
        return blake2b(repr((sequence.salt, adapter)).encode(), digest_size=DIGEST_BYTES).digest()


def _hash(before: bytes, tokens: array[int]) -> bytes:
    """Return the name of a block; `before` has one length, so no two blocks of other tokens are hashed alike."""
    return blake2b(before + tokens.tobytes(), digest_size=DIGEST_BYTES).digest()
