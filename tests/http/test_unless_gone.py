"""Work for a client that leaves: cancelled, and what comes of it all the same is given back."""

from __future__ import annotations

import asyncio

import pytest

from server.api.client import ClientGone, unless_gone


async def stays() -> dict[str, str]:
    """A client that never leaves."""
    await asyncio.Event().wait()
    raise AssertionError


async def leaves() -> dict[str, str]:
    """A client that has left."""
    return {"type": "http.disconnect"}


async def test_the_result_comes_back() -> None:
    discarded: list[int] = []

    async def work() -> int:
        return 5

    assert await unless_gone(stays, work(), discarded.append) == 5
    assert discarded == []


async def test_an_error_comes_back() -> None:
    async def work() -> int:
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        await unless_gone(stays, work())


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            ended = True

    with pytest.raises(ClientGone):
        await unless_gone(leaves, work())
    assert ended


async def test_a_result_in_spite_of_that_is_discarded() -> None:
    discarded: list[int] = []

    async def work() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return 5
        raise AssertionError

    with pytest.raises(ClientGone):
        await unless_gone(leaves, work(), discarded.append)
    assert discarded == [5]
