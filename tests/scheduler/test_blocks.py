"""Blocks: handed out once, taken back once, shared and found again by name."""

from __future__ import annotations

import pytest

from server.engine.scheduler.blocks import BlockAllocator


def test_blocks_are_handed_out_whole_or_not_at_all() -> None:
    pool = BlockAllocator(4, 16)
    first = pool.allocate(3)
    assert first is not None
    assert len(set(first)) == 3
    assert pool.allocate(2) is None
    assert (pool.free, pool.used) == (1, 3)
    assert pool.allocate(0) == ()
    pool.release(first)
    rest = pool.allocate(4)
    assert rest is not None
    assert sorted(rest) == [0, 1, 2, 3]


def test_a_block_is_taken_back_once() -> None:
    pool = BlockAllocator(2, 16)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(ValueError, match="was not held"):
        pool.release(blocks)


def test_the_pool_tells_what_it_handed_out() -> None:
    pool = BlockAllocator(4, 16)
    blocks = (pool.allocate(1) or ()) + (pool.allocate(2) or ())
    assert pool.take_handed_out() == blocks
    assert pool.take_handed_out() == ()


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_tokens_in_blocks(tokens: int, blocks: int) -> None:
    assert BlockAllocator(4, 16).blocks_for(tokens) == blocks


def test_a_lost_block_is_noticed() -> None:
    pool = BlockAllocator(3, 16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.check_integrity(blocks)
    with pytest.raises(RuntimeError, match="lost"):
        pool.check_integrity(blocks[:1])
    with pytest.raises(RuntimeError, match="miscounted"):
        pool.check_integrity([*blocks, blocks[0]])


def test_a_named_block_is_found_while_nobody_needs_its_room() -> None:
    pool = BlockAllocator(3, 16)
    first, second = pool.allocate(2) or ()
    pool.name(first, b"first"), pool.name(second, b"second")
    pool.release([first, second])
    assert (pool.free, pool.used, pool.find(b"first")) == (3, 0, first)
    pool.check_integrity([])
    assert pool.allocate(2) is not None, "the one without a name, and the end of the chain"
    assert (pool.find(b"first"), pool.find(b"second")) == (first, None)
    assert pool.allocate(1) == (first,)
    assert pool.find(b"first") is None


def test_the_longest_unheld_block_goes_first() -> None:
    pool = BlockAllocator(3, 16)
    blocks = pool.allocate(3) or ()
    for block in blocks:
        pool.name(block, bytes([block]))
    for block in blocks:
        pool.release([block])
    pool.share(blocks[:1])
    pool.release(blocks[:1])
    assert pool.allocate(3) == (blocks[1], blocks[2], blocks[0])


def test_a_shared_block_is_free_when_all_have_released_it() -> None:
    pool = BlockAllocator(2, 16)
    blocks = pool.allocate(1) or ()
    pool.name(blocks[0], b"name")
    assert pool.unheld(blocks) == 0
    pool.share(blocks)
    pool.check_integrity([*blocks, *blocks])
    pool.release(blocks)
    assert pool.used == 1
    pool.release(blocks)
    assert (pool.used, pool.unheld(blocks)) == (0, 1)
    pool.share(blocks)
    assert pool.used == 1
    assert pool.take_handed_out() == blocks, "what is shared is not handed out: it must not be cleared"


def test_the_first_block_of_a_name_keeps_it() -> None:
    pool = BlockAllocator(2, 16)
    first, second = pool.allocate(2) or ()
    pool.name(first, b"name"), pool.name(second, b"name")
    assert pool.find(b"name") == first
    with pytest.raises(ValueError, match="has no name"):
        pool.share([second])
    pool.release([second])
    with pytest.raises(ValueError, match="was not held"):
        pool.name(second, b"other")
    pool.check_integrity([first])


def test_a_new_name_takes_the_place_of_the_old() -> None:
    pool = BlockAllocator(2, 16)
    first, second = pool.allocate(2) or ()
    assert pool.name(first, b"half")
    assert pool.name(first, b"whole")
    assert (pool.find(b"half"), pool.find(b"whole")) == (None, first)
    assert (pool.has_name(first, b"half"), pool.has_name(first, b"whole")) == (False, True)
    assert pool.name(second, b"half")
    assert not pool.name(second, b"whole"), "another has it"
    assert pool.find(b"half") == second
    pool.check_integrity([first, second])


def test_a_block_that_was_read_goes_last() -> None:
    pool = BlockAllocator(3, 16)
    blocks = pool.allocate(3) or ()
    for block in blocks:
        pool.name(block, bytes([block]))
    pool.touch(blocks[1])
    pool.release(blocks)
    pool.touch(blocks[2])
    assert pool.allocate(3) == (blocks[1], blocks[0], blocks[2])


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="a pool needs"):
        BlockAllocator(0, 16)
