"""The client's side of the connection: noticing that it went away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection; nobody reads an answer."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T], discard: Callable[[T], None] | None = None) -> T:
    """Return what `work` returns; cancel it and raise ClientGone when the client leaves first.

    A result that comes in spite of the cancellation goes to `discard`. The request's body must have been read: from
    then on the connection's end is all that `receive` can tell.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(receive))
    taken = False
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            taken = True
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        late, _ = await asyncio.gather(working, leaving, return_exceptions=True)
        if not (taken or discard is None or isinstance(late, BaseException)):
            discard(late)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
