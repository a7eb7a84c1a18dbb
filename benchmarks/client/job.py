"""What the client process is told, and what it tells: one JSON object each way."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """Requests to send. `times` (seconds from the start) makes it an open loop, else `clients` make it a closed one.

    `bodies` is a file with one JSON body a line. The first `warm` of them are sent all at once before the clock starts
    and count nowhere.
    """

    host: str
    port: int
    path: str
    bodies: str
    clients: int = 1
    times: tuple[float, ...] | None = None
    warm: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job. Seconds throughout; the lists are per request, `gaps` one list for all of them."""

    wall: float  # from the first request sent to the last reply read
    cpu: float  # of the client process
    tokens: int
    sent: list[float]  # since the first one; requests that failed included
    firsts: list[float]
    lasts: list[float]
    counts: list[int]  # tokens; in the order of firsts and lasts
    gaps: list[float]
    failures: list[str]

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return self.tokens / self.wall if self.wall else 0.0


def encode(value: Job | Outcome) -> str:
    return json.dumps(asdict(value))


def decode_job(text: str) -> Job:
    fields = json.loads(text)
    fields["times"] = None if fields["times"] is None else tuple(fields["times"])
    return Job(**fields)


def decode_outcome(text: str) -> Outcome:
    return Outcome(**json.loads(text))
