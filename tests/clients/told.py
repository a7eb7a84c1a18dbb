"""For the clients' scripts: what they tell the test, and the server in the states that they ask it in.

A script is run as `script.py URL KEY ENGINE_PID PROMPT` in its client's environment; this module needs Python alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

URL, KEY, ENGINE, PROMPT = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]


def tell(results: dict[str, Any], *packages: str) -> None:
    """Print the results, and the versions of the packages that gave them, on a line behind all else that is printed."""
    results["versions"] = {package: version(package) for package in packages}
    sys.stdout.write("\n" + json.dumps(results))


def raised(call: Callable[[], Any]) -> dict[str, Any]:
    """Return what the call raises: its type, the package that the type is of, and what an error tells of itself."""
    try:
        result = call()
    except Exception as error:
        return {
            "type": type(error).__name__,
            "package": type(error).__module__.partition(".")[0],
            "text": str(error)[:500],
            "status": getattr(error, "status_code", getattr(getattr(error, "response", None), "status_code", None)),
            "code": getattr(error, "code", None),
            "param": getattr(error, "param", None),
        }
    return {"type": None, "text": repr(result)[:500]}


@contextmanager
def full_server() -> Iterator[None]:
    """Hold every place of the server, and afterwards wait until it has noticed that they are free."""
    with urllib.request.urlopen(_request(n=4, max_tokens=4000, ignore_eos=True, stream=True)) as response:
        response.readline()
        yield
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(_request(n=4, max_tokens=1)).read()
            return
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _request(**fields: Any) -> urllib.request.Request:
    return urllib.request.Request(
        f"{URL}/v1/generate",
        json.dumps({"prompt": "x", **fields}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )


def kill_engine() -> None:
    """Let the engine die in the middle of what it does."""
    os.kill(ENGINE, signal.SIGKILL)


def until_killed(stream: Iterator[Any]) -> None:
    """Read a stream whose engine dies after the first event."""
    next(stream)
    kill_engine()
    for _ in stream:
        pass
