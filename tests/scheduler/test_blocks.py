"""Blocks: handed out once, taken back once."""

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
    with pytest.raises(RuntimeError, match="lost or held twice"):
        pool.check_integrity(blocks[:1])
    with pytest.raises(RuntimeError, match="lost or held twice"):
        pool.check_integrity([*blocks, blocks[0]])


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="a pool needs"):
        BlockAllocator(0, 16)
