"""500 answers sampled at temperature 1 over several JSON schemas and adapters all parse and validate. Some minutes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.surroundings import machine
from tests.e2e.structured import ask_many, shipped_server, tally

GENERATIONS = 500
RESULTS = Path(__file__).parent / "results" / "structured.json"


def test_every_sampled_answer_is_valid_json_of_its_schema(tmp_path: Path) -> None:
    with shipped_server(tmp_path) as server:
        began = time.monotonic()
        answers = ask_many(server, GENERATIONS)
        seconds = time.monotonic() - began
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        **tally(answers),
        "seconds": round(seconds, 1),
    }
    RESULTS.write_text(json.dumps(result, indent=2, default=str) + "\n")
    assert [answer for answer in answers if answer.finish != "stop" or answer.fault] == []
