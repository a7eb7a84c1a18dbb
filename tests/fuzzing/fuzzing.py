"""schemathesis against a server over the fake engine: requests made from the OpenAPI document, good and bad."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.running import ROOT

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
    "unsupported_method",
)


@contextmanager
def fake_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Give the URL and a key of a server in a process of its own; its log is `folder/server.log`."""
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, "-m", "tests.fuzzing.serve_fake", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True)
        try:
            assert process.stdout is not None
            url, key = process.stdout.readline().split()
            yield url, key
            assert process.poll() is None, "the server ended"
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0


def fuzz(
    url: str, folder: Path, *, key: str | None, examples: int, phases: str = "examples,coverage,fuzzing", seed: int = 1
) -> dict[str, Any]:
    """Run schemathesis with so many examples of each operation, and return its report. Fails where a check did."""
    report = folder / f"report-{'with' if key else 'without'}-key.json"
    command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--phases", phases]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"]
    command += ["--continue-on-failure", "--report", "json", "--report-json-path", str(report), "--warnings", "off"]
    command += ["--suppress-health-check", "all", "--request-timeout", "30"]
    if key is not None:
        command += ["--header", f"Authorization: Bearer {key}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    told: dict[str, Any] = json.loads(report.read_text())
    return told
