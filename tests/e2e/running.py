"""A real server in a process of its own, and what the tests ask of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "smollm2-135m"


@dataclass(slots=True)
class RunningServer:
    """A server that answers at `url`."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def client(self, **kwargs: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **kwargs)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples whose labels include `labels`."""
        total, found = 0.0, False
        for line in httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines():
            match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total, found = total + float(match[2]), True
        assert found, f"/metrics has no {name} {labels}"
        return total

    def engine_pid(self) -> int:
        """The engine: the server's one child that runs `server.engine`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            if "server.engine" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
        raise AssertionError("the server has no engine")

    def wait_ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    def stop(self) -> int:
        """Ask it to end and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(store: Path | str, folder: Path, *flags: str, model: Path = MODEL) -> Iterator[RunningServer]:
    """Start a float32 server on a free port with this store; stop it at the end.

    Its memory for keys and values is small, so that several fit beside each other.
    """
    port = free_port()
    log = folder / f"server-{port}.log"
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--store", str(store)]
    command += ["--model", str(model), "--dtype", "float32", *flags]
    command += [] if "--kv-memory" in flags else ["--kv-memory", "1GiB"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WAYBILL_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, text=True
        )
    server = RunningServer(process, f"http://127.0.0.1:{port}", log)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()
