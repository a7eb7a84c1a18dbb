"""Prove the image and the compose file on a real Docker engine, through a published port.

    python tests/long/prove_docker.py            builds the image first
    python tests/long/prove_docker.py --image waybill:latest

The image must refuse to start without keys, run as its own user, become healthy, take an upload, answer with it after a
restart exactly as before, and end with exit code 0 on SIGTERM. `docker-compose up` must do the same. What was proved
goes to tests/long/results/docker.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = ROOT / "adapters_store/public/pirate/versions/000001"
HEALTHY_WITHIN = 240.0  # seconds
KEY = re.compile(r"\bwb_\w+")
RESULTS = ROOT / "tests/long/results/docker.json"
PROVED: list[str] = []


def run(*command: str, check: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; stdout and stderr come back together."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done


def say(line: str) -> None:
    """Report one proved point."""
    PROVED.append(line)
    sys.stdout.write(f"docker: {line}\n")
    sys.stdout.flush()


def expect(condition: bool, claim: str) -> None:
    """Report `claim` if it holds; end the proof otherwise."""
    if not condition:
        raise SystemExit(f"docker: FAILED: {claim}")
    say(claim)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_healthy(container: str) -> None:
    """Return once the container's own health check passes."""
    deadline = time.monotonic() + HEALTHY_WITHIN
    while time.monotonic() < deadline:
        state = json.loads(run("docker", "inspect", "--format", "{{json .State}}", container).stdout)
        if state["Status"] == "exited":
            break
        if state["Health"]["Status"] == "healthy":
            return
        time.sleep(1)
    raise SystemExit(f"docker: FAILED: not healthy\n{run('docker', 'logs', container, check=False).stdout}")


def first_key(container: str) -> str:
    """The one API key that the log shows."""
    keys = set(KEY.findall(run("docker", "logs", container).stdout))
    expect(len(keys) == 1, "the first start printed one API key")
    return keys.pop()


def upload(client: httpx.Client, name: str) -> None:
    """Publish the shipped pirate adapter under another name."""
    files = [
        ("files", (path.name, path.read_bytes()))
        for path in sorted(ADAPTER.glob("*.json"))
        if path.name != "manifest.json"
    ]
    files.append(("files", ("adapter_model.safetensors", (ADAPTER / "adapter_model.safetensors").read_bytes())))
    reply = client.post("/v1/adapters", data={"name": name}, files=files)
    expect(reply.status_code == 201, f"the upload answered {reply.status_code}")


def ask(client: httpx.Client, name: str) -> tuple[str, str]:
    """Digest and text of a greedy answer."""
    body = {
        "adapter": name,
        "prompt": "What is the capital of Italy?",
        "max_tokens": 16,
        "temperature": 0,
    }
    reply = client.post("/v1/generate", json=body)
    if reply.status_code != 200:
        raise SystemExit(f"docker: FAILED: generate answered {reply.status_code}: {reply.text}")
    answer: dict[str, Any] = reply.json()
    return answer["adapter"]["digest"], answer["choices"][0]["text"]


def prove_server(container: str, port: int, restart: tuple[str, ...]) -> None:
    """Everything that holds however the container was started."""
    wait_healthy(container)
    say("became healthy")
    expect(run("docker", "exec", container, "id", "-u").stdout.strip() == "10001", "runs as uid 10001")
    key = first_key(container)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as stranger:
        expect(stranger.get("/v1/adapters").status_code == 401, "a request without a key answers 401")
    with httpx.Client(base_url=url, timeout=120, trust_env=False, headers={"Authorization": f"Bearer {key}"}) as client:
        upload(client, "uploaded")
        before = ask(client, "uploaded")
        run(*restart)
        wait_healthy(container)
        expect(ask(client, "uploaded") == before, f"answers with it after a restart: {before[1]!r}")
    first_key(container)
    kept = run("docker", "exec", container, "cat", "/var/lib/waybill/keys.json").stdout
    expect(key not in kept, "the volume keeps only the key's hash")


def prove_run(image: str) -> None:
    """`docker run`."""
    refused = run("docker", "run", "--rm", image, check=False)
    expect(refused.returncode != 0 and "key" in refused.stdout, "refuses to start without keys")
    name, port = f"waybill-proof-{uuid.uuid4().hex[:8]}", free_port()
    try:
        run(
            *("docker", "run", "--detach", "--name", name, "--publish", f"127.0.0.1:{port}:8000"),
            *("--volume", f"{name}:/var/lib/waybill", image, "--create-first-key", "default"),
        )
        prove_server(name, port, ("docker", "restart", "--time", "60", name))
        run("docker", "stop", "--time", "60", name)
        code = run("docker", "inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
        expect(code == "0", f"SIGTERM ended it with exit code {code}")
    finally:
        run("docker", "rm", "--force", name, check=False)
        run("docker", "volume", "rm", name, check=False)


def compose_command() -> tuple[str, ...]:
    """Compose version 2 if the engine has it, else the older `docker-compose`."""
    if run("docker", "compose", "version", check=False).returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    raise SystemExit("docker: FAILED: neither `docker compose` nor `docker-compose` is here")


def prove_compose() -> None:
    """`docker-compose up`, with the image built before."""
    project, port = f"waybillproof{uuid.uuid4().hex[:8]}", free_port()
    compose = (*compose_command(), "--project-name", project)
    env = {"WAYBILL_PORT": str(port)}
    try:
        run(*compose, "up", "--detach", "--no-build", env=env)
        container = run(*compose, "ps", "--quiet", "waybill", env=env).stdout.split()[-1]
        prove_server(container, port, (*compose, "restart"))
    finally:
        run(*compose, "down", "--volumes", check=False, env=env)


def main() -> None:
    """Build unless an image is named, then prove both ways of running it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="prove this image instead of building waybill:latest")
    image = parser.parse_args().image
    if image is None:
        image = "waybill:latest"
        args = [
            f"--build-arg={name}={os.environ[name]}" for name in ("PYTHON_IMAGE", "TORCH_INDEX") if name in os.environ
        ]
        run("docker", "build", "--network", "host", *args, "--tag", image, ".")
        say("the image builds")
    elif image != "waybill:latest":
        run("docker", "tag", image, "waybill:latest")
    prove_run(image)
    prove_compose()
    versions = {
        "engine": run("docker", "version", "--format", "{{.Server.Version}}").stdout.strip(),
        "compose": run(*compose_command(), "version", "--short").stdout.strip(),
    }
    RESULTS.write_text(json.dumps({**versions, "proved": PROVED}, indent=1) + "\n")
    say("all proved")


if __name__ == "__main__":
    main()
