"""Which blocks of the KV memory are free."""

from __future__ import annotations

from collections.abc import Iterable


class BlockAllocator:
    """Hands out the blocks of one pool, for sequences' own KV and for prefixes alike.

    A block has one holder at a time: sharing is counted where it happens, in the residency book. Released blocks are
    handed out last in, first out, so that a busy engine touches few pages of memory.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Make a pool of `num_blocks` free blocks, numbered from 0, of `block_size` tokens each."""
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens, not {num_blocks} blocks of {block_size} tokens")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(reversed(range(num_blocks)))
        self._held = [False] * num_blocks
        self._handed_out: list[int] = []

    @property
    def free(self) -> int:
        """Blocks that can be handed out."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that are held."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that cover so many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """Hand out `count` blocks, or None (and no block) when fewer are free."""
        if count > len(self._free):
            return None
        blocks = tuple(self._free.pop() for _ in range(count))
        for block in blocks:
            self._held[block] = True
        self._handed_out += blocks
        return blocks

    def release(self, blocks: Iterable[int]) -> None:
        """Take blocks back. Raises ValueError for one that is not held."""
        for block in blocks:
            if not self._held[block]:
                raise ValueError(f"block {block} is released and was not held")
            self._held[block] = False
            self._free.append(block)

    def take_handed_out(self) -> tuple[int, ...]:
        """Return the blocks handed out since this was last asked."""
        blocks, self._handed_out = tuple(self._handed_out), []
        return blocks

    def check_integrity(self, holders: Iterable[int]) -> None:
        """Raise RuntimeError unless `holders` names every held block once and the others are free."""
        held = sorted(holders)
        if sorted([*held, *self._free]) != list(range(self.num_blocks)):
            raise RuntimeError(f"blocks are lost or held twice: held {held}, free {sorted(self._free)}")
        if any(not self._held[block] for block in held):
            raise RuntimeError("a block is in use and marked free")
