"""`python -m benchmarks.client`: read a job from standard input, do it, write its outcome to standard output."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from time import perf_counter, process_time

import uvloop

from benchmarks.client.job import Job, Outcome, decode_job, encode
from benchmarks.client.load import Outcome as Heard
from benchmarks.client.load import closed_loop, open_loop
from benchmarks.client.stream import read_answer
from benchmarks.client.wire import Reply, request_bytes


def run(job: Job) -> Outcome:
    """Send the job's requests and read the answers once all are in."""
    bodies = Path(job.bodies).read_bytes().splitlines()
    requests = [request_bytes(job.host, job.port, job.path, body) for body in bodies]
    warming, requests = requests[: job.warm], requests[job.warm :]
    if warming:
        uvloop.run(closed_loop(job.host, job.port, len(warming), warming))
    gc.collect()
    gc.disable()
    began, burned = perf_counter(), process_time()
    if job.times is None:
        heard = uvloop.run(closed_loop(job.host, job.port, job.clients, requests))
    else:
        heard = uvloop.run(open_loop(job.host, job.port, job.times, requests))
    return summarise(heard, began, process_time() - burned)


def summarise(heard: list[Heard], began: float, cpu: float) -> Outcome:
    """Turn replies into figures; `began` stands in for the first request where none was answered."""
    replies = [reply for reply in heard if isinstance(reply, Reply)]
    start = min((reply.sent for reply in replies), default=began)
    end = max((reply.arrivals[-1] for reply in replies if reply.arrivals), default=start)
    answers = [read_answer(reply) if isinstance(reply, Reply) else None for reply in heard]
    good = [answer for answer in answers if answer is not None and answer.failure is None]
    return Outcome(
        wall=end - start,
        cpu=cpu,
        tokens=sum(answer.tokens for answer in good),
        sent=[reply.sent - start for reply in replies],
        firsts=[answer.first for answer in good],
        lasts=[answer.arrivals[-1] for answer in good],
        counts=[answer.tokens for answer in good],
        gaps=[gap for answer in good for gap in answer.gaps],
        failures=[answer.failure for answer in answers if answer is not None and answer.failure is not None]
        + [outcome for outcome in heard if isinstance(outcome, str)],
    )


if __name__ == "__main__":
    sys.stdout.write(encode(run(decode_job(sys.stdin.read()))))
