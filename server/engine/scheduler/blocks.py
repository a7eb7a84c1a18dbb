"""Which blocks of the KV memory are free, who shares one, and which can be found again by what they hold."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockAllocator:
    """Hands out the blocks of one pool, for sequences' own KV and for prefixes alike.

    A block is held as often as it was handed out or shared and not released since. One that got a name keeps what it
    holds when its last holder leaves: it counts as free, may be shared again, and is handed out only when no other
    block is free, the longest unheld and unread first. Blocks without a name are handed out last in, first out, so that
    a busy engine touches few pages of memory.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Make a pool of `num_blocks` free blocks, numbered from 0, of `block_size` tokens each."""
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens, not {num_blocks} blocks of {block_size} tokens")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(reversed(range(num_blocks)))  # without a name
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # with a name and not held, the next to go first
        self._holders = [0] * num_blocks
        self._by_name: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._handed_out: list[int] = []

    @property
    def free(self) -> int:
        """Blocks that can be handed out."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks that are held."""
        return self.num_blocks - self.free

    def blocks_for(self, tokens: int) -> int:
        """Blocks that cover so many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """Hand out `count` blocks, or None (and no block) when fewer are free."""
        if count > self.free:
            return None
        blocks = tuple(self._free.pop() if self._free else self._take_kept() for _ in range(count))
        for block in blocks:
            self._holders[block] = 1
        self._handed_out += blocks
        return blocks

    def unheld(self, blocks: Iterable[int]) -> int:
        """Return how many of these blocks nobody holds: sharing them takes them from what is free."""
        return sum(not self._holders[block] for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks once more. Raises ValueError for one that has no name."""
        for block in blocks:
            if block not in self._names:
                raise ValueError(f"block {block} is shared and has no name")
            self._holders[block] += 1
            self._kept.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """Take blocks back, the last first, so that a chain is given up from its end.

        Raises ValueError for one that is not held.
        """
        for block in reversed(blocks):
            if not self._holders[block]:
                raise ValueError(f"block {block} is released and was not held")
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if (name := self._names.get(block)) is None:
                self._free.append(block)
            else:
                self._kept[block] = name

    def name(self, block: int, name: bytes) -> bool:
        """Let a held block be found by what it holds; a name that it had gives way. False if another has the name.

        Raises ValueError for one that is not held.
        """
        if not self._holders[block]:
            raise ValueError(f"block {block} is named and was not held")
        if (other := self._by_name.get(name)) is not None:
            return other == block
        if (old := self._names.get(block)) is not None:
            del self._by_name[old]
        self._by_name[name] = block
        self._names[block] = name
        return True

    def find(self, name: bytes) -> int | None:
        """Return the block of this name."""
        return self._by_name.get(name)

    def has_name(self, block: int, name: bytes) -> bool:
        """Whether this is the block's name still."""
        return self._names.get(block) == name

    def touch(self, block: int) -> None:
        """A block was read by somebody who does not hold it: it is the last to go, if it may go."""
        if block in self._kept:
            self._kept.move_to_end(block)

    def take_handed_out(self) -> tuple[int, ...]:
        """Return the blocks handed out since this was last asked."""
        blocks, self._handed_out = tuple(self._handed_out), []
        return blocks

    def check_integrity(self, holders: Iterable[int]) -> None:
        """Raise RuntimeError unless `holders` names every held block as often as it is held and the others are free."""
        held = Counter(holders)
        if sorted([*held, *self._free, *self._kept]) != list(range(self.num_blocks)):
            raise RuntimeError(f"blocks are lost or held and free: held {sorted(held)}, free {sorted(self._free)}")
        if any(self._holders[block] != held[block] for block in range(self.num_blocks)):
            raise RuntimeError("the holders of a block are miscounted")
        if self._by_name != {name: block for block, name in self._names.items()}:
            raise RuntimeError("a name stands for a block that has another")
        if any(self._names.get(block) != name for block, name in self._kept.items()) or set(self._free) & set(
            self._names
        ):
            raise RuntimeError("a block is kept without a name, or free with one")

    def _take_kept(self) -> int:
        block, name = self._kept.popitem(last=False)
        del self._by_name[name], self._names[block]
        return block
