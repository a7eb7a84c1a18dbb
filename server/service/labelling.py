"""An answer that is one of given labels: each scored by how likely the model goes on from the prompt with it.

A label's score is the sum of the log-probabilities of its tokens, joined to the prompt as both are tokenised together:
merges may cross the border, so what counts begins where a label and the prompt part. All labels' tokens are taken from
one point on, the end of what every one of them shares with the prompt alone.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.core import FinishReason, Scoring, TokenEvent
from server.engine.client import SequenceStream
from server.errors import InvalidRequest, WaybillError
from server.service.choice import Choice
from server.service.detokenizer import Detokenizer
from server.service.exchange import LabelScore
from server.service.prompt_tokens import PromptTokens
from server.service.prompting import RenderedPrompt

logger = logging.getLogger(__name__)

Ids = tuple[int, ...]

Submit = Callable[[Ids, Scoring], SequenceStream]
"""Queues a sequence that draws nothing, with the call's adapter."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A prompt and its labels: `shared` is the start of all, `endings` are each label's tokens behind it."""

    alone: RenderedPrompt
    shared: RenderedPrompt
    labels: tuple[str, ...]
    endings: tuple[Ids, ...]

    @property
    def num_text_tokens(self) -> int:
        """Tokens of the prompt alone that are no virtual tokens."""
        return self.alone.num_text_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest ending."""
        return max(map(len, self.endings))

    def sequences(self, abreast: int) -> int:
        """Return how many sequences are open at once, `abreast` at most: the first is alone."""
        return min(max(1, len(self.stems) - 1), abreast)

    @property
    def stems(self) -> dict[Ids, Ids]:
        """What is computed behind `shared`, and which tokens are asked for behind that.

        All first tokens are asked for behind nothing. The last token of a longer ending is asked for behind the rest
        of it, together with the last tokens of endings that differ in nothing else.
        """
        last: dict[Ids, dict[int, None]] = {}
        for ending in self.endings:
            last.setdefault((), {})[ending[0]] = None
            if len(ending) > 1:
                last.setdefault(ending[:-1], {})[ending[-1]] = None
        return {stem: tuple(tokens) for stem, tokens in last.items()}


def join(alone: RenderedPrompt, together: Sequence[RenderedPrompt], labels: Sequence[str], vocab_size: int) -> Joined:
    """Take apart a prompt joined with each of its labels. Raises InvalidRequest where a label cannot be scored."""
    whole = [(*prompt.prefix_ids, *prompt.tokens) for prompt in together]
    shared = _common((*alone.prefix_ids, *alone.tokens), *whole)
    for label, tokens in zip(labels, whole, strict=True):
        if len(tokens) == shared:
            raise InvalidRequest(f"the label {label[:64]!r} adds no token to the prompt", param="labels")
    if not shared:
        raise InvalidRequest("the prompt is too short: with a label it leaves no token to go on from", param="prompt")
    # What comes before the first token that is scored has to be computed, so one token is left of a prefix.
    split = min(len(together[0].prefix_ids), shared - 1)
    tokens = whole[0][split:shared]
    start = RenderedPrompt(
        tokens,
        whole[0][:split],
        sum(token < vocab_size for token in whole[0][:shared]),
        alone.task_index,
        max(tokens) >= vocab_size,
    )
    return Joined(alone, start, tuple(labels), tuple(tokens[shared:] for tokens in whole))


def _common(*runs: Ids) -> int:
    """Return how many tokens all runs begin with alike."""
    places = zip(*runs, strict=False)
    return next((i for i, tokens in enumerate(places) if len(set(tokens)) > 1), min(map(len, runs)))


class LabelChoice(Choice):
    """A choice that is picked, not written: its text is the label that scores highest, the first of those that tie.

    One sequence computes the shared start, and tells how likely each first token is behind it. Only endings of several
    tokens need another, with at most `abreast` open at once; what they share is in the prompt cache by then.
    """

    def __init__(
        self,
        index: int,
        joined: Joined,
        submit: Submit,
        *,
        abreast: int,
        prompt: PromptTokens,
        detokenizer: Detokenizer,
        observe_gap: Callable[[float], None],
    ) -> None:
        """Submit the first sequence. Raises EngineRestarting."""
        self._joined = joined
        self._submit = submit
        self._abreast = abreast
        self._stems = joined.stems
        self._waiting = deque(stem for stem in self._stems if stem)
        self._left = len(self._stems)
        self._logprobs: dict[tuple[Ids, int], float] = {}  # of a token behind a part of an ending
        self._closed = False
        first = self._ask(())
        self._open = [first]
        super().__init__(index, first, prompt, detokenizer, frozenset(), False, token_text=str, observe_gap=observe_gap)

    def read(self, wake: Callable[[], None], ended: Callable[[WaybillError | None], None]) -> None:
        """From now on take in what the sequences bring; `wake` and `ended` are called at the end of all."""
        self._wake, self._tell = wake, ended
        self._listen((), self._open[0])

    def end(self, reason: FinishReason) -> None:
        """Finish now without an answer, unless it has finished; the sequences are aborted."""
        if self.finish is None:
            self.finish = reason
            self.abort()

    def abort(self) -> None:
        """End the sequences in the engine; safe at any time."""
        self._closed = True
        for stream in self._open:
            stream.abort()

    def _ask(self, stem: Ids) -> SequenceStream:
        shared = self._joined.shared.tokens
        return self._submit((*shared, *stem), Scoring(start=len(shared) + 1, after=self._stems[stem]))

    def _listen(self, stem: Ids, stream: SequenceStream) -> None:
        def take(event: TokenEvent) -> None:
            """The scores came before the only event, which says nothing."""

        def end(error: WaybillError | None) -> None:
            if not self._closed:
                self._take_in(stem, stream, error)

        stream.listen(take, end)

    def _take_in(self, stem: Ids, stream: SequenceStream, error: WaybillError | None) -> None:
        """A sequence is at its end: go on with others, or with the answer."""
        try:
            if error is None:
                self._learn(stem, stream)
                self._go_on()
        except WaybillError as failure:
            error = failure
        except Exception as failure:
            # Only the type: a message may quote the text.
            logger.error("scoring labels failed: %s", type(failure).__name__)
            error = WaybillError("internal error")
        if error is not None:
            self._tell(error)
        elif not self._left:
            self._answer()
            self._wake()
            self._tell(None)

    def _learn(self, stem: Ids, stream: SequenceStream) -> None:
        """Keep what a sequence told: of the tokens of its stem behind the first, and of those that may follow it."""
        for scores in stream.scores:
            for place, logprob in enumerate(scores.logprobs, scores.start - len(self._joined.shared.tokens)):
                self._logprobs[stem[:place], stem[place]] = logprob
        for token, logprob in zip(self._stems[stem], stream.scores[-1].after, strict=True):
            self._logprobs[stem, token] = logprob
        self._open.remove(stream)
        self._left -= 1

    def _go_on(self) -> None:
        while self._waiting and len(self._open) < self._abreast:
            stem = self._waiting.popleft()
            stream = self._ask(stem)
            self._open.append(stream)
            self._listen(stem, stream)

    def _answer(self) -> None:
        labels, endings = self._joined.labels, self._joined.endings
        sums = [math.fsum(self._logprobs[ending[:i], token] for i, token in enumerate(ending)) for ending in endings]
        best = sums.index(max(sums))
        weights = [math.exp(logprob - sums[best]) for logprob in sums]
        total = math.fsum(weights)
        self.labels = tuple(
            LabelScore(label, logprob, weight / total, len(ending))
            for label, logprob, weight, ending in zip(labels, sums, weights, endings, strict=True)
        )
        self._rest = labels[best]
        self.token_ids += endings[best]
        self.finish = FinishReason.STOP
