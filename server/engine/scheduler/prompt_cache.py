"""Full blocks of earlier sequences, found again by every token up to their end."""

from __future__ import annotations

from array import array
from hashlib import blake2b

from server.engine.scheduler.blocks import BlockAllocator
from server.engine.scheduler.sequence import Sequence

DIGEST_BYTES = 32
"""Of a block's name. Two starts with one name would answer from each other's text; at 256 bits nobody can make two."""


class PromptCache:
    """Names the full blocks of segment B, and finds them for later sequences that start alike.

    A block's name is a hash of its tokens and of the name before it. The first is rooted in the sequence's salt and in
    the adapter's key, also where the adapter has no prefix: its virtual tokens have the same ids as every other's. So
    a block is found only by sequences for which a forward would fill it alike, and never across salts. Sequences
    without a salt find nothing and leave nothing.
    """

    def __init__(self, blocks: BlockAllocator, *, enabled: bool) -> None:
        """Name blocks of this pool; a cache that is not `enabled` treats every sequence as one without a salt."""
        self.asked = 0  # prompt tokens of sequences that may reuse blocks
        self.found = 0  # of these, tokens that were computed before
        self._blocks = blocks
        self._enabled = enabled

    def find(self, sequence: Sequence) -> tuple[int, ...]:
        """Return the blocks that hold the start of a waiting sequence.

        At least the last token is left to compute, and so is every token from the first whose row is still wanted.
        """
        if not self._serves(sequence):
            return ()
        tokens = min(sequence.length - 1, sequence.first_row, len(sequence.tokens))
        found: list[int] = []
        for index in range(tokens // self._blocks.block_size):
            block = self._blocks.find(self._name(sequence, index))
            if block is None:
                break
            found.append(block)
        return tuple(found)

    def admitted(self, sequence: Sequence, reused: int) -> None:
        """A sequence starts to run with so many blocks that it did not have to compute."""
        size = self._blocks.block_size
        sequence.computed = reused * size
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
            self._blocks.name(sequence.blocks[index], self._name(sequence, index))
        sequence.named, sequence.fills_at = full, (full + 1) * size

    def _serves(self, sequence: Sequence) -> bool:
        return self._enabled and sequence.salt is not None

    def _name(self, sequence: Sequence, index: int) -> bytes:
        """Return the name of a block whose tokens are known; those before it are named on the way."""
        names, size = sequence.names, self._blocks.block_size
        while len(names) <= index:
            start = len(names) * size
            tokens = array("q", sequence.tokens[start : start + size]).tobytes()
            before = names[-1] if names else self._root(sequence)
            names.append(blake2b(before + tokens, digest_size=DIGEST_BYTES).digest())
        return names[index]

    def _root(self, sequence: Sequence) -> bytes:
        """Sequences without an adapter have no key: what one process computes is by one base model."""
        key = sequence.key
        adapter = None if key is None else (key.base, key.adapter, key.task, key.length)
        return blake2b(repr((sequence.salt, adapter)).encode(), digest_size=DIGEST_BYTES).digest()
