"""What the generate route answers: the whole reply, and the frames of a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from json.encoder import encode_basestring
from typing import Any, Literal

from pydantic import BaseModel
from starlette.responses import Response

from server.api.errors import error_body
from server.core import AdapterKind
from server.errors import WaybillError
from server.service.choice import Choice
from server.service.exchange import AdapterUsed, Delta, Timings, TokenLogprob, Usage
from server.service.run import Run


def write_json(data: Any) -> str:
    """Return JSON without blanks, text as it is."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


PIECE = 256
"""Items of a long list that are written at once."""


def write_large(data: Any) -> str:
    """Return what `write_json` returns, written a piece at a time: other threads have their turns in between."""
    if isinstance(data, dict):
        return "{" + ",".join([f"{write_json(name)}:{write_large(item)}" for name, item in data.items()]) + "}"
    if not isinstance(data, list):
        return write_json(data)
    if len(data) <= PIECE:
        return "[" + ",".join([write_large(item) for item in data]) + "]"
    return "[" + ",".join([write_json(data[i : i + PIECE])[1:-1] for i in range(0, len(data), PIECE)]) + "]"


async def large_reply(make: Callable[[], Any], headers: dict[str, str] | None = None) -> Response:
    """Return as JSON what `make` tells. Both are done in a thread: what fills megabytes would hold every stream up."""
    body = await asyncio.to_thread(lambda: write_large(make()).encode())
    return Response(body, media_type="application/json", headers=headers)


class AdapterReply(BaseModel):
    """The version that answered."""

    name: str
    version: str
    digest: str
    kind: AdapterKind
    num_virtual_tokens: int


class LogprobReply(BaseModel):
    """One token's log-probability; `top` holds the likeliest candidates."""

    token_id: int
    token: str
    logprob: float
    top: list[LogprobReply] = []


class LabelReply(BaseModel):
    """One label: the sum of its tokens' log-probabilities, and its share among all labels."""

    label: str
    logprob: float
    probability: float
    num_tokens: int


class ChoiceReply(BaseModel):
    """One choice; prompt p's choice c has the index `p * n + c`. In a stream, `text` is what is new."""

    index: int
    text: str
    finish_reason: Literal["stop", "length", "abort", "timeout"] | None
    stop_reason: str | int | None
    token_ids: list[int] = []
    logprobs: list[LogprobReply] = []
    prompt_logprobs: list[LogprobReply | None] = []
    labels: list[LabelReply] = []


class UsageReply(BaseModel):
    """Tokens; virtual ones are counted apart. `cached_tokens` of the prompt's were computed for an earlier request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    virtual_tokens: int
    cached_tokens: int


class TimingsReply(BaseModel):
    """Milliseconds."""

    queue_ms: float
    load_ms: float
    ttft_ms: float
    total_ms: float


class GenerateReply(BaseModel):
    """The reply of `POST /v1/generate`."""

    id: str
    object: Literal["text_generation"]
    created: int
    model: str
    adapter: AdapterReply | None
    choices: list[ChoiceReply]
    usage: UsageReply
    seed: int
    timings: TimingsReply


class ReplyWriter:
    """Writes one run's reply or frames. `request_id` names them, `model` is the base model's name."""

    ends_with_done = True

    def __init__(self, run: Run, *, request_id: str, model: str, token_ids: bool, logprobs: bool) -> None:
        self._run = run
        self._token_ids = token_ids
        self._logprobs = logprobs
        self._frame_start: str | None = None
        self._head: dict[str, Any] = {
            "id": f"gen-{request_id}",
            "object": "text_generation",
            "created": run.created,
            "model": model,
            "adapter": None if run.adapter is None else adapter_reply(run.adapter),
        }

    def whole(self) -> dict[str, Any]:
        """Return the unstreamed reply."""
        return {**self._head, "choices": [self._whole_choice(c) for c in self._run.choices], **self._tail()}

    def headers(self) -> dict[str, str]:
        """Return none: all is in the reply."""
        return {}

    def frames(self, deltas: list[Delta]) -> list[str]:
        """Return one frame of deltas as JSON. It is written once a token: what all frames share is encoded once."""
        if self._frame_start is None:
            head = {**self._head, "object": "text_generation.chunk"}
            self._frame_start = write_json(head)[:-1] + ',"choices":['
        return [self._frame_start + ",".join([self._delta_json(delta) for delta in deltas]) + "]}"]

    def last_frames(self) -> list[str]:
        """Return the frame of usage, seed and timings."""
        return [write_json({**self._head, "object": "text_generation.chunk", "choices": [], **self._tail()})]

    def error_frame(self, error: WaybillError) -> str:
        """Return OpenAI's error object."""
        return write_json(error_body(error))

    def _delta_json(self, delta: Delta) -> str:
        if self._token_ids or self._logprobs or delta.finish is not None:
            return write_json(self._delta(delta))
        text = encode_basestring(delta.text)
        return f'{{"index":{delta.index},"text":{text},"finish_reason":null,"stop_reason":null}}'

    def _tail(self) -> dict[str, Any]:
        run = self._run
        return {"usage": _usage(run.usage), "seed": run.seed, "timings": _timings(run.timings)}

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        whole = Delta(
            choice.index,
            choice.text,
            tuple(choice.token_ids),
            tuple(choice.logprobs),
            choice.finish,
            choice.stop_reason,
        )
        written = self._delta(whole)
        if entries := choice.prompt_logprobs:
            written["prompt_logprobs"] = [None if entry is None else _logprob(entry) for entry in entries]
        if choice.labels:
            written["labels"] = [asdict(score) for score in choice.labels]
        return written

    def _delta(self, delta: Delta) -> dict[str, Any]:
        written: dict[str, Any] = {
            "index": delta.index,
            "text": delta.text,
            "finish_reason": delta.finish,
            "stop_reason": delta.stop_reason,
        }
        if self._token_ids:
            written["token_ids"] = list(delta.token_ids)
        if self._logprobs:
            written["logprobs"] = [_logprob(entry) for entry in delta.logprobs]
        return written


def adapter_reply(used: AdapterUsed) -> dict[str, Any]:
    return {
        "name": used.name,
        "version": used.version,
        "digest": used.digest,
        "kind": used.kind,
        "num_virtual_tokens": used.num_virtual_tokens,
    }


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    written: dict[str, Any] = {"token_id": entry.token_id, "token": entry.token, "logprob": entry.logprob}
    written["top"] = [{"token_id": t.token_id, "token": t.token, "logprob": t.logprob} for t in entry.top]
    return written


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "virtual_tokens": usage.virtual_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _timings(timings: Timings) -> dict[str, float]:
    return {
        "queue_ms": round(timings.queue_ms, 2),
        "load_ms": round(timings.load_ms, 2),
        "ttft_ms": round(timings.ttft_ms, 2),
        "total_ms": round(timings.total_ms, 2),
    }
