"""The suite's side of a library peer: its process, asked in turns like a server."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.asks import Ask
from benchmarks.peers import PeerError
from benchmarks.results import Turn
from benchmarks.servers import ROOT


@dataclass(slots=True)
class LibraryPeer:
    """A running peer. It sleeps while it waits for a batch, so it need not be paused."""

    process: subprocess.Popen[str]
    log: Path

    def measure(self, asks: list[Ask]) -> Turn:
        """Let it answer `asks`. It streams nothing, so times to tokens are 0. Raises PeerError when it has died."""
        assert self.process.stdin is not None
        batch = {"requests": [(ask.adapter, ask.prompt) for ask in asks], "new_tokens": asks[0].new_tokens}
        try:
            self.process.stdin.write(json.dumps(batch) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        said = self._read()
        rate = said["tokens"] / said["seconds"]
        return Turn(rate, int(said["tokens"]), said["seconds"], 0, 0, 0, 0, 0, 0, failures=0)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_ready(self) -> None:
        self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._death()
        said: dict[str, float] = json.loads(line)
        return said

    def _death(self) -> PeerError:
        return PeerError(f"the library peer died:\n{self.log.read_text(errors='replace')[-3000:]}")


def start_library(kind: str, model: Path, folder: Path, adapters: Path | None = None) -> LibraryPeer:
    """Start `peft`, `peft-grouped` or `transformers` and wait until its model is loaded. Raises PeerError."""
    log = folder / f"{kind}.log"
    command = [sys.executable, "-m", "benchmarks.library", kind, str(model), *([str(adapters)] if adapters else [])]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        )
    peer = LibraryPeer(process, log)
    peer.wait_ready()
    return peer
