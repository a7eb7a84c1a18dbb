"""The benchmark's client: HTTP in pieces cut anywhere, streams of both servers, bodies that both servers take."""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks.asks import Ask, completions_body, prompts, waybill_body
from benchmarks.client.stream import read_answer
from benchmarks.client.wire import Connection, ProtocolError, Reply
from benchmarks.workloads.open_loop import poisson
from benchmarks.workloads.overhead import text_body

EVENTS = [
    b'data: {"choices": [{"text": "one"}]}\n\n',
    b'data: {"choices": [{"text": " two"}]}\n\n',
    b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\ndata: [DONE]\n\n',
]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    """Takes what is written and says nothing."""

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        pass


async def heard(pieces: list[bytes]) -> Reply:
    connection = Connection()
    connection.connection_made(Transport())
    waiting = connection.ask(b"request")
    for piece in pieces:
        connection.data_received(piece)
    return await asyncio.wait_for(waiting, 1)


def chunked(events: list[bytes]) -> bytes:
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_a_stream_reads_the_same_wherever_it_is_cut(size: int) -> None:
    raw = chunked(EVENTS)
    reply = asyncio.run(heard([raw[at : at + size] for at in range(0, len(raw), size)]))
    assert reply.status == 200
    assert reply.body == b"".join(EVENTS)
    answer = read_answer(reply)
    assert (answer.failure, answer.tokens, answer.text) == (None, 2, "one two")


def test_an_event_cut_between_chunks_arrives_with_its_last_byte() -> None:
    reply = Reply(0.0, 200, [1.0, 2.0, 3.0], [EVENTS[0][:9], EVENTS[0][9:], EVENTS[2]])
    assert read_answer(reply).arrivals == (2.0,)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(0.0, 503, [1.0], [b"busy"]),
        Reply(0.0, 200, [1.0], [b'data: {"error": {"message": "gone"}}\n\n']),
        Reply(0.0, 200, [1.0], [EVENTS[0]]),
        Reply(0.0, 200, [1.0], [b"data: half\n\n"]),
    ],
    ids=["status", "error", "no count", "no JSON"],
)
def test_what_is_no_answer_is_a_failure(reply: Reply) -> None:
    answer = read_answer(reply)
    assert answer.failure
    assert answer.tokens == 0


def test_what_is_not_http_ends_the_request() -> None:
    with pytest.raises(ProtocolError):
        asyncio.run(heard([b"nonsense without a status\r\n\r\n"]))


def test_prompts_differ_and_come_again_with_their_seed() -> None:
    made = prompts(50, 8, 1000, "seed")
    assert len(set(made)) == 50
    assert made == prompts(50, 8, 1000, "seed")
    assert made != prompts(50, 8, 1000, "another")


def test_both_bodies_ask_for_the_same() -> None:
    ask = Ask((5, 6, 7), 9, adapter="a")
    ours, theirs = json.loads(waybill_body(ask)), json.loads(completions_body(ask))
    assert ours["prompt"] == theirs["prompt"] == [5, 6, 7]
    assert ours["max_tokens"] == theirs["max_tokens"] == 9
    assert ours["stream"]
    assert theirs["stream"]
    assert ours["ignore_eos"]
    assert theirs["ignore_eos"]
    assert ours["adapter"] == "a"


def test_a_prompt_of_words_is_text() -> None:
    assert len(json.loads(text_body(Ask((1, 2, 3))))["prompt"].split()) == 3


def test_arrivals_come_at_their_rate() -> None:
    times = poisson(50.0, 20.0, 1)
    assert times[0] == 0.0
    assert list(times) == sorted(times)
    assert times[-1] < 20.0
    assert 850 < len(times) < 1150
