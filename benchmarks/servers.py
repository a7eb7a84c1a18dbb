"""Servers under measurement: started on a free port of 127.0.0.1, and paused while another is measured."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.asks import Ask, completions_body, waybill_body
from benchmarks.client.job import Job, Outcome, decode_outcome, encode

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]
START_SECONDS = 300
TURN_SECONDS = 240


class ServerError(Exception):
    """A server did not start, died, or answered with errors."""


@dataclass(slots=True)
class Server:
    """A server that is up. It runs only inside `awake`; outside, all its processes are stopped."""

    label: str
    process: subprocess.Popen[bytes]
    port: int
    path: str
    body: Callable[[Ask], bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for a while. Raises ServerError if it has died."""
        if self.process.poll() is not None:
            raise ServerError(f"{self.label} died:\n{_tail(self.log)}")
        processes.resume(self.pid)
        try:
            yield
        finally:
            processes.pause(self.pid)

    def send(
        self,
        asks: list[Ask],
        folder: Path,
        *,
        clients: int = 1,
        times: tuple[float, ...] | None = None,
        warm: list[Ask] | None = None,
    ) -> Outcome:
        """Send requests from a client process and return what came of them; the server must be awake.

        Raises ServerError when the client process fails; requests that fail are in the outcome.
        """
        warm = warm or []
        bodies, outcome = folder / "bodies.jsonl", folder / "outcome.json"
        bodies.write_bytes(b"\n".join(self.body(ask) for ask in [*warm, *asks]))
        job = Job(HOST, self.port, self.path, str(bodies), clients, times, len(warm))
        try:
            with outcome.open("w") as told:
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.client"],
                    input=encode(job),
                    stdout=told,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=TURN_SECONDS,
                    cwd=ROOT,
                )
        except subprocess.TimeoutExpired:
            raise ServerError(f"{self.label} did not answer within {TURN_SECONDS} s:\n{_tail(self.log)}") from None
        finally:
            bodies.unlink()
        if done.returncode != 0:
            raise ServerError(f"the client of {self.label} failed:\n{done.stderr[-2000:]}")
        return decode_outcome(outcome.read_text())

    def stop(self) -> None:
        """End it; processes that do not go by themselves are killed."""
        members = processes.family(self.pid)
        processes.resume(self.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            for member in members:
                _kill(member)
            self.process.wait()


def start_waybill(model: Path, store: Path, folder: Path, *flags: str, label: str = "waybill") -> Server:
    """Start our server in bfloat16, with the settings a user would have but for `flags`."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--store", str(store)]
    command += ["--model", str(model), "--dtype", "bfloat16", *flags]
    process, log = _spawn(command, _without_settings(), folder, label, port)
    server = Server(label, process, port, "/v1/generate", waybill_body, log)
    _wait(server, "/health/ready")
    return server


def start_null(model: Path, store: Path, folder: Path, body: Callable[[Ask], bytes], label: str = "null") -> Server:
    """Start our API process with an engine that computes nothing."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.null", "--port", str(port), "--store", str(store)]
    process, log = _spawn([*command, "--model", str(model)], _without_settings(), folder, label, port)
    server = Server(label, process, port, "/v1/generate", body, log)
    _wait(server, "/health/ready")
    return server


def start_vllm(home: Path, model: Path, folder: Path, *flags: str, label: str = "vllm") -> Server:
    """Start vLLM's OpenAI server from its own environment, on all cores, with prompt embeddings."""
    port = free_port()
    command = [str(home / "bin" / "vllm"), "serve", str(model), "--host", HOST, "--port", str(port)]
    command += ["--dtype", "bfloat16", "--max-model-len", "2048", "--served-model-name", "base"]
    command += ["--enable-prompt-embeds", *flags]
    cores = sorted(os.sched_getaffinity(0))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores),
        "LD_PRELOAD": ":".join(str(library) for library in _preloads(home)),
    }
    process, log = _spawn(command, environment, folder, label, port)
    server = Server(label, process, port, "/v1/completions", completions_body, log)
    _wait(server, "/health")
    return server


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def get(server: Server, path: str, seconds: float = 5) -> bytes:
    """Return the body of a GET. Raises OSError, for other statuses than 200 too."""
    with urllib.request.urlopen(f"http://{HOST}:{server.port}{path}", timeout=seconds) as reply:
        return bytes(reply.read())


def metric(server: Server, name: str) -> float:
    """Return the sum of a Prometheus metric's samples. Raises OSError."""
    lines = get(server, "/metrics").decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def vocab_size(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def _without_settings() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("WAYBILL_")}


def _spawn(
    command: list[str], environment: dict[str, str], folder: Path, label: str, port: int
) -> tuple[subprocess.Popen[bytes], Path]:
    log = folder / f"{label.replace(' ', '-')}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
    return process, log


def _wait(server: Server, path: str) -> None:
    """Wait until it answers, then pause it."""
    deadline = time.monotonic() + START_SECONDS
    try:
        while True:
            if server.process.poll() is not None:
                raise ServerError(f"{server.label} did not start:\n{_tail(server.log)}")
            if time.monotonic() > deadline:
                raise ServerError(f"{server.label} was not up after {START_SECONDS} s:\n{_tail(server.log)}")
            try:
                get(server, path)
                break
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
    except BaseException:
        server.stop()
        raise
    processes.pause(server.pid)


def _preloads(home: Path) -> list[Path]:
    """Return the libraries vLLM advises to load first: Intel's OpenMP, which it brings, and tcmalloc where it is."""
    malloc = [
        path for folder in ("/usr/lib", "/usr/lib64") for path in Path(folder).glob("**/libtcmalloc_minimal.so.4")
    ]
    return malloc[:1] + [path for path in [home / "lib" / "libiomp5.so"] if path.exists()]


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
