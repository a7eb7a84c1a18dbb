"""Real S3 servers for tests: SeaweedFS as a process, moto in a thread."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from moto.server import ThreadedMotoServer

BUCKET = "adapters"


def environment(endpoint: str) -> dict[str, str]:
    """Return the variables that lead a client of S3 to a server of ours."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """Run SeaweedFS with its files in `folder` and an empty bucket; give its address."""
    program = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert program is not None, "SeaweedFS comes with the development tools"
    s3, *others = _free_ports(8)
    names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3.grpc")
    ports = [f"-{name}.port={port}" for name, port in zip(names, others, strict=True)]
    ports = [port.replace(".grpc.port=", ".port.grpc=") for port in ports]
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={s3}"]
    limits = ["-master.volumeSizeLimitMB=64", "-volume.max=50", "-master.telemetry=false", "-s3.iam=false"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, *ports, *limits], stdout=log, stderr=log, cwd=folder)
    try:
        endpoint = f"http://127.0.0.1:{s3}"
        _make_bucket(endpoint, seconds=60)
        yield endpoint
    finally:
        server.kill()
        server.wait()


@contextmanager
def moto() -> Iterator[str]:
    """Run moto's S3 with an empty bucket; give its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        _make_bucket(f"http://{host}:{port}", seconds=20)
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _make_bucket(endpoint: str, seconds: float) -> None:
    """Make the bucket, and wait until an object can be written there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            made = httpx.put(f"{endpoint}/{BUCKET}", timeout=5)
            written = httpx.put(f"{endpoint}/{BUCKET}/.ready", content=b"x", timeout=5)
            if made.status_code in (200, 409) and written.status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the S3 server did not come up"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
