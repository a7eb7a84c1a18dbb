"""JSON schemas for sampled answers of the real base model and the shipped adapters, and what is asked of an answer."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.e2e.running import ROOT, RunningServer, running

NAME = {"type": "string", "minLength": 1, "maxLength": 16}


def record(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "person": record(
        name=NAME,
        age={"type": "integer", "minimum": 0, "maximum": 120},
        email={"type": "string", "pattern": "^[a-z]{2,10}@[a-z]{2,10}\\.(com|org)$"},
    ),
    "verdict": record(
        label={"enum": ["spam", "ham", "unsure", None]},
        confidence={"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
        urgent={"type": "boolean"},
    ),
    "order": record(
        items={
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": record(what=NAME, count={"type": "integer", "minimum": 1, "maximum": 99}),
        },
        date={"type": "string", "format": "date"},
    ),
    "shape": {
        "anyOf": [
            record(kind={"const": "circle"}, radius={"type": "integer", "minimum": 1, "maximum": 1000}),
            record(
                kind={"const": "box"},
                sides={
                    "type": "array",
                    "prefixItems": [{"type": "integer", "minimum": 1, "maximum": 50}] * 3,
                    "items": False,
                    "minItems": 3,
                },
            ),
        ]
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": record(name=NAME, children={"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2}),
            "leaf": record(name=NAME, weight={"type": ["integer", "null"], "minimum": -9, "maximum": 9}),
        },
    },
    "words": {"type": "array", "items": {"type": "string", "maxLength": 10}, "minItems": 2, "maxItems": 4},
}
"""Each is bounded: an answer is short, and comes to its end."""

ASKED = {
    None: "Give the answer as JSON:\n",
    "deb-summary": "This package contains a tool to resize and convert images from the command line.",
    "pirate": "What is the capital of Germany?",
    "question-type": "Who wrote the first dictionary of this language?",
    "sms-spam": "You have won a prize! Call now to claim it.",
}
"""Adapters, with a prompt for each."""

MAX_TOKENS = 500


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: what was asked, and what was wrong with what came (empty: nothing)."""

    schema: str
    adapter: str | None
    tokens: int
    finish: str
    fault: str


@contextmanager
def shipped_server(folder: Path) -> Iterator[RunningServer]:
    """A server of the real base model with a copy of the shipped adapters."""
    store = Path(shutil.copytree(ROOT / "adapters_store", folder / "store"))
    with running(store, folder, "--max-seqs", "32") as server:
        yield server


def ask_many(server: RunningServer, count: int) -> list[Answered]:
    """Ask for `count` answers at temperature 1, over all schemas and adapters, many at once."""
    with ThreadPoolExecutor(32) as crowd:
        return list(crowd.map(lambda number: _ask(server, number), range(count)))


def tally(answers: list[Answered]) -> dict[str, Any]:
    """Return counts of what came."""
    return {
        "generations": len(answers),
        "finished": sum(answer.finish == "stop" for answer in answers),
        "parsed and valid": sum(not answer.fault for answer in answers),
        "tokens": sum(answer.tokens for answer in answers),
        "most tokens of one": max(answer.tokens for answer in answers),
        "by schema": dict(Counter(answer.schema for answer in answers)),
        "by adapter": dict(Counter(answer.adapter or "none" for answer in answers)),
    }


def _ask(server: RunningServer, number: int) -> Answered:
    schema = list(SCHEMAS)[number % len(SCHEMAS)]
    adapter = list(ASKED)[number // len(SCHEMAS) % len(ASKED)]
    body: dict[str, Any] = {
        "prompt": ASKED[adapter],
        "temperature": 1.0,
        "seed": number,
        "max_tokens": MAX_TOKENS,
        "response_format": {"type": "json_schema", "json_schema": {"name": schema, "schema": SCHEMAS[schema]}},
    }
    if adapter is not None:
        body["adapter"] = adapter
    with server.client() as client:
        reply = client.post("/v1/generate", json=body)
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    return Answered(
        schema,
        adapter,
        reply.json()["usage"]["completion_tokens"],
        choice["finish_reason"],
        _fault(choice["text"], SCHEMAS[schema]),
    )


def _fault(text: str, schema: dict[str, Any]) -> str:
    """Return what is wrong with a text, as the jsonschema library sees it: in decimals, where 0.58 is 58 times 0.01."""
    schema = json.loads(json.dumps(schema), parse_float=Decimal)
    try:
        value = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        return f"{error}: {text!r}"
    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return "; ".join(error.message for error in checker.iter_errors(value))
