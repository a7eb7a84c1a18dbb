"""A server process over the judging engine, and what can be seen of it from outside.

    python -m tests.hostile.serving MODEL STORE

prints its URL and serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.app import create_app
from server.formats.base import read_base_model
from server.serving import DrainingServer, bind
from server.settings import Settings, make_plan
from tests.e2e.running import ROOT
from tests.hostile.engine import JudgingEngine
from tests.http.conftest import MACHINE, until

BAIT = "waybill_bait"
"""A module that the server could import, and that leaves a trace when it is."""


@dataclass(frozen=True)
class Watched:
    """A running server: where it answers, its store, its log."""

    url: str
    pid: int
    store: Path
    log: Path

    def files(self) -> dict[str, bytes | None]:
        """Everything in the store, folders as None."""
        found = sorted(self.store.rglob("*"))
        return {str(path.relative_to(self.store)): None if path.is_dir() else path.read_bytes() for path in found}

    def open_files(self) -> list[str]:
        """Files of the store that the server holds open."""
        links = [os.readlink(path) for path in Path(f"/proc/{self.pid}/fd").iterdir() if path.is_symlink()]
        return [link for link in links if link.startswith(str(self.store))]

    def forget_peak(self) -> int:
        """Let the peak of resident memory begin anew, and return the bytes that are resident."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    def peak(self) -> int:
        """The most bytes that were resident since `forget_peak`."""
        return self._status("VmHWM")

    def surprises(self) -> list[str]:
        """Lines of the log that tell of a fault of the server's."""
        return [line for line in self.log.read_text().splitlines() if re.search("Traceback|ERROR|Error", line)]

    def _status(self, name: str) -> int:
        match = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert match is not None
        return int(match[1]) * 1024


@contextmanager
def watched(model: Path, folder: Path) -> Iterator[Watched]:
    """Serve the store `folder/store`; the bait lies in `folder`, and leaves `folder/bitten`."""
    (folder / f"{BAIT}.py").write_text(f"open({str(folder / 'bitten')!r}, 'w').close()\n")
    path = os.pathsep.join((str(ROOT), str(folder)))
    log = folder / "server.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.serving", str(model), str(folder / "store")],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, log.read_text()
            yield Watched(url, process.pid, folder / "store", log)
            assert process.poll() is None, "the server ended"
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert process.returncode == 0


async def main(model: Path, store: Path) -> None:
    """Serve until the signal."""
    settings = Settings(model=model, store=store)
    base = read_base_model(model)
    app = create_app(settings, make_plan(settings, base, MACHINE), JudgingEngine(base))
    bound = bind("127.0.0.1", 0)
    server = DrainingServer(app, settings.shutdown_timeout)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await until(lambda: server.started, 10)
    sys.stdout.write(f"http://127.0.0.1:{bound.getsockname()[1]}\n")
    sys.stdout.flush()
    await serving


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
