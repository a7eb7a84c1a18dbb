"""Uploads to a disk that has no room for them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.http import folders
from tests.http.conftest import Api
from tests.http.test_bad_requests import refused

ROOM = 64 * 1024


@contextmanager
def no_more_room() -> Iterator[None]:
    """No file of this process can grow past 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def large() -> dict[str, bytes]:
    """An adapter whose card is larger than what there is room for."""
    return {**folders.soft_prompt(), "README.md": b"x" * 2 * ROOM}


@pytest.mark.parametrize("files", [large(), {"all.zip": folders.zipped(large())}], ids=["files", "zip"])
async def test_an_upload_to_a_full_disk_is_503_and_leaves_nothing(api: Api, files: dict[str, bytes]) -> None:
    with no_more_room():
        answer = await api.publish("mine", files)
        small = await api.publish("small", folders.soft_prompt())
    message = refused(answer, 503, "store_full", None)
    assert int(answer.headers["retry-after"]) > 0
    assert str(api.store) not in message
    assert list((api.store / ".staging").iterdir()) == []
    assert small.status_code == 201
    assert (await api.publish("mine", files)).status_code == 201
