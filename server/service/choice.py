"""One sequence on its way to the client: engine events in, deltas of text out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from server.core import NO_TOKEN, FinishReason, TokenEvent
from server.engine.client import SequenceStream
from server.engine.messages import Started
from server.errors import WaybillError
from server.service.detokenizer import Detokenizer
from server.service.exchange import Delta, LabelScore, TokenLogprob
from server.service.prompt_tokens import PromptTokens

logger = logging.getLogger(__name__)


class Choice:
    """One of the call's choices, from submission to its finish reason.

    It reads its stream until the sequence ends, a stop string shows up in the text (then the sequence is aborted), or
    it is ended from outside. `text`, `token_ids` and `logprobs` hold all so far, `pieces` the text that each token made
    certain; `take` gives what is new. What was asked for of the prompt's tokens is complete before the first of its
    own.
    """

    def __init__(
        self,
        index: int,
        stream: SequenceStream,
        prompt: PromptTokens,
        detokenizer: Detokenizer,
        stop_token_ids: frozenset[int],
        include_stop: bool,
        token_text: Callable[[int], str],
        observe_gap: Callable[[float], None],
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[str] = []
        self.labels: tuple[LabelScore, ...] = ()
        self.finish: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._stream = stream
        self._prompt = prompt
        self._detokenizer = detokenizer
        self._stop_token_ids = stop_token_ids
        self._include_stop = include_stop
        self._token_text = token_text
        self._observe_gap = observe_gap
        self._rest = ""
        self._told_tokens = 0
        self._told_finish = False
        self._last_token: float | None = None

    @property
    def text(self) -> str:
        """All the text so far."""
        return "".join(self.pieces) + self._rest

    @property
    def started(self) -> Started | None:
        """When the engine began with it, None before."""
        return self._stream.started

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt's text tokens; virtual ones are left out."""
        return self._prompt.ids

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob | None, ...]:
        """One for each of `prompt_token_ids`, None for those that have none, as the first; () where none were asked."""
        return self._prompt.logprobs(self._stream.scores) if self._stream.scores else ()

    @property
    def num_scored(self) -> int:
        """How many tokens have log-probabilities to tell, those of the prompt among them."""
        return len(self.logprobs) + sum(len(scores.logprobs) for scores in self._stream.scores)

    @property
    def cached_tokens(self) -> int:
        """Text tokens of the prompt that were computed for an earlier call; those of the prefix are not counted."""
        return 0 if self.started is None else self._prompt.cached(self.started.cached_tokens)

    def read(self, wake: Callable[[], None], ended: Callable[[WaybillError | None], None]) -> None:
        """From now on take in what the stream brings, calling `wake` after each token, and `ended` once at its end."""

        def take(event: TokenEvent) -> None:
            if self.finish is not None:
                return
            try:
                self._absorb(event)
            except Exception as error:
                # Only the type: a message may quote the text.
                logger.error("reading a sequence failed: %s", type(error).__name__)
                ended(WaybillError("internal error"))
            else:
                wake()

        self._stream.listen(take, ended)

    def end(self, reason: FinishReason) -> None:
        """Finish now with what there is, unless it has finished; the sequence is aborted."""
        if self.finish is None:
            self._finish(reason, None)

    def abort(self) -> None:
        """End the sequence in the engine; safe at any time."""
        self._stream.abort()

    def take(self, *, details: bool) -> Delta | None:
        """Return what is new, or None. `details`: token ids or logprobs alone are worth telling."""
        fresh = self._told_tokens
        ends = self.finish is not None and not self._told_finish
        pieces = tuple(self.pieces[fresh:])
        text = "".join(pieces) + (self._rest if ends else "")
        if not (text or ends or (details and len(self.token_ids) > fresh)):
            return None
        self._told_tokens, self._told_finish = len(self.token_ids), ends
        return Delta(
            self.index,
            text,
            tuple(self.token_ids[fresh:]),
            tuple(self.logprobs[fresh:]),
            self.finish if ends else None,
            self.stop_reason if ends else None,
            pieces,
        )

    def _absorb(self, event: TokenEvent) -> None:
        now = time.monotonic()
        if self._last_token is not None:
            self._observe_gap(now - self._last_token)
        self._last_token = now
        if event.token == NO_TOKEN:
            assert event.finish is not None, "the only event of a sequence that draws nothing is its last"
            self._finish(event.finish, None)
            return
        self._note(event)
        if event.finish is FinishReason.STOP:
            # The token that ends a sequence is no part of its text, unless asked for.
            self.pieces.append(self._detokenizer.push(event.token) if self._include_stop else "")
            self._finish(event.finish, event.token if event.token in self._stop_token_ids else None)
            return
        self.pieces.append(self._detokenizer.push(event.token))
        if event.finish is not None or self._detokenizer.stopped is not None:
            self._finish(event.finish or FinishReason.STOP, None)

    def _note(self, event: TokenEvent) -> None:
        self.token_ids.append(event.token)
        if event.logprob is not None:
            entry = TokenLogprob(
                event.token,
                self._token_text(event.token),
                event.logprob,
                tuple(TokenLogprob(i, self._token_text(i), p) for i, p in event.top_logprobs),
            )
            self.logprobs.append(entry)

    def _finish(self, reason: FinishReason, stop_reason: str | int | None) -> None:
        """Release the text held back; a stop string that shows in it is why the sequence ended."""
        self._rest = self._detokenizer.flush()
        stopped = self._detokenizer.stopped
        self.finish, self.stop_reason = (reason, stop_reason) if stopped is None else (FinishReason.STOP, stopped)
        self._stream.abort()
