"""Ten thousand requests made from the OpenAPI document: no 5xx, no undocumented status, no reply of another shape."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

from server.machine import read_machine
from tests.fuzzing.fuzzing import CHECKS, fake_server, fuzz

CASES = 10_000
RESULTS = Path(__file__).parent / "results" / "schemathesis.json"


def test_ten_thousand_cases(tmp_path: Path) -> None:
    with fake_server(tmp_path) as (url, key):
        reports = [fuzz(url, tmp_path, key=key, examples=800), fuzz(url, tmp_path, key=None, examples=50)]
    cases = [report["test_cases"] for report in reports]
    assert cases[0]["generated"] >= CASES
    assert all(count["with_failures"] == count["errored"] == 0 for count in cases)
    assert all(report["operations"]["tested"] == report["operations"]["total"] for report in reports)
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {read_machine().cores} cores",
        "python": platform.python_version(),
        "schemathesis": reports[0]["schemathesis_version"],
        "checks": list(CHECKS),
        "operations": reports[0]["operations"]["tested"],
        "cases with a key": cases[0]["generated"],
        "cases without a key": cases[1]["generated"],
        "failures": sum(count["with_failures"] for count in cases),
        "seconds": round(sum(report["running_time"] for report in reports)),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
