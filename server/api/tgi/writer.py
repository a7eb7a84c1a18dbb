"""One run in the words of TGI and LoRAX: the reply, or an event for every token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.api.replies import adapter_reply, write_json
from server.api.tgi.replies import Finish
from server.api.tgi.schemas import TgiRequest
from server.api.tgi.words import TgiWords
from server.core import FinishReason
from server.errors import WaybillError
from server.service.exchange import Delta, TokenLogprob
from server.service.run import Run
from server.service.tokenizer import Tokenizer


class TgiWriter:
    """Writes the one choice of a run.

    `listed` puts the reply into a list. `model` and `device` are told in headers.
    """

    ends_with_done = False

    def __init__(
        self, run: Run, body: TgiRequest, tokenizer: Tokenizer, *, listed: bool, stream: bool, model: str, device: str
    ) -> None:
        self._run = run
        self._choice = run.choices[0]
        self._body = body
        self._tokenizer = tokenizer
        self._listed = listed
        self._stream = stream
        self._model = model
        self._device = device
        self._told = 0

    def whole(self) -> Any:
        """Return the reply."""
        ending = self._ending()
        reply: dict[str, Any] = {"generated_text": self._text()}
        if self._body.with_details:
            reply["details"] = self._details(ending)
        return [reply] if self._listed else reply

    def headers(self) -> dict[str, str]:
        """Return the headers of both servers, as far as there is something true to say; times in milliseconds.

        `x-compute-time` alone is in seconds, as in TGI.
        """
        usage, timings = self._run.usage, self._run.timings
        headers = {
            "x-compute-type": self._device,
            "x-compute-characters": str(len(self._body.inputs)),
            "x-prompt-tokens": str(usage.prompt_tokens),
            "x-queue-time": _ms(timings.queue_ms),
        }
        if self._model.isascii() and self._model.isprintable():
            headers["x-model-id"] = self._model
        if self._run.adapter is not None:
            headers |= {"x-adapter-id": self._run.adapter.name, "x-adapter-source": "local"}
        if self._stream:
            return headers
        inference = timings.total_ms - timings.queue_ms
        return headers | {
            "x-compute-time": f"{timings.total_ms / 1000:.6f}",
            "x-total-time": _ms(timings.total_ms),
            "x-inference-time": _ms(inference),
            "x-time-per-token": _ms(inference / max(usage.completion_tokens, 1)),
            "x-generated-tokens": str(usage.completion_tokens),
            "x-total-tokens": str(usage.total_tokens),
        }

    def frames(self, deltas: list[Delta]) -> Iterator[str]:
        """Yield an event for every token, that of the last with the text and how it ended."""
        for delta in deltas:
            if delta.finish is not None:
                _finish(delta.finish, delta.stop_reason)
            last = len(delta.token_ids) - 1
            for place, (token, text) in enumerate(_tokens(delta)):
                ends = place == last and delta.finish is not None
                self._told += 1
                yield write_json(self._event(token, text, ends=ends))

    def last_frames(self) -> list[str]:
        """Return none: the last token's event says all."""
        return []

    def error_frame(self, error: WaybillError) -> str:
        """Return TGI's error body."""
        return write_json(TgiWords().body(error))

    def _event(self, token: TokenLogprob, text: str, *, ends: bool) -> dict[str, Any]:
        event: dict[str, Any] = {"index": self._told, "token": self._token(token, text)}
        if top := self._top(token):
            event["top_tokens"] = top
        event["generated_text"] = self._text() if ends else None
        event["details"] = None
        if ends and self._body.parameters.details:
            event["details"] = {"input_length": self._run.usage.prompt_tokens} | self._ending()
        return event

    def _details(self, ending: dict[str, Any]) -> dict[str, Any]:
        choice = self._choice
        whole = Delta(
            choice.index, choice.text, tuple(choice.token_ids), tuple(choice.logprobs), pieces=tuple(choice.pieces)
        )
        tokens = list(_tokens(whole))
        details = ending | {
            "skipped_tokens": 0,
            "prefill": self._prefill(),
            "tokens": [self._token(token, text) for token, text in tokens],
        }
        if self._body.parameters.top_n_tokens:
            details["top_tokens"] = [self._top(token) for token, _ in tokens]
        return details

    def _ending(self) -> dict[str, Any]:
        adapter, usage = self._run.adapter, self._run.usage
        return {
            "finish_reason": _finish(self._choice.finish, self._choice.stop_reason),
            "prompt_tokens": usage.prompt_tokens,
            "generated_tokens": usage.completion_tokens,
            "seed": self._run.seed if self._body.parameters.draws else None,
            "adapter": None if adapter is None else adapter_reply(adapter),
        }

    def _text(self) -> str:
        return (self._body.inputs if self._body.parameters.return_full_text else "") + self._choice.text

    def _prefill(self) -> list[dict[str, Any]]:
        ids, entries = self._choice.prompt_token_ids, self._choice.prompt_logprobs
        return [
            {
                "id": token,
                "text": self._tokenizer.token_text(token),
                "logprob": None if entry is None else entry.logprob,
            }
            for token, entry in zip(ids, entries, strict=False)
        ]

    def _token(self, token: TokenLogprob, text: str) -> dict[str, Any]:
        special = self._special(token)
        written = {
            "id": token.token_id,
            "text": token.token if special else text,
            "logprob": token.logprob,
            "special": special,
            "skipped": False,
        }
        if count := self._body.parameters.return_k_alternatives:
            written["alternative_tokens"] = [
                {"id": other.token_id, "text": other.token, "logprob": other.logprob} for other in token.top[:count]
            ]
        return written

    def _top(self, token: TokenLogprob) -> list[dict[str, Any]]:
        return [
            {
                "id": other.token_id,
                "text": other.token,
                "logprob": other.logprob,
                "special": self._special(other),
            }
            for other in token.top[: self._body.parameters.top_n_tokens or 0]
        ]

    def _special(self, token: TokenLogprob) -> bool:
        return token.token_id in self._tokenizer.special_ids


def _tokens(delta: Delta) -> Iterator[tuple[TokenLogprob, str]]:
    """Yield the delta's tokens with the text that each made certain; the last has what the end released."""
    rest = delta.text[len("".join(delta.pieces)) :]
    last = len(delta.pieces) - 1
    for place, (token, piece) in enumerate(zip(delta.logprobs, delta.pieces, strict=True)):
        yield token, piece + rest if place == last else piece


def _finish(finish: FinishReason | None, stop_reason: str | int | None) -> Finish:
    """Return why the text ended. Raises WaybillError where it is not complete: both servers know no such reason."""
    if finish is FinishReason.LENGTH:
        return "length"
    if finish is FinishReason.STOP:
        return "stop_sequence" if isinstance(stop_reason, str) else "eos_token"
    raise WaybillError("incomplete generation")


def _ms(milliseconds: float) -> str:
    return str(round(milliseconds))
