"""An engine in this process, small on purpose, and the questions that the parity suite asks it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.gpu.models import base_of
from server.core import AdapterSource, SamplingParams, TokenEvent
from server.engine.loading import Sizes, assemble
from server.engine.messages import StepReport, StepStats, Submit
from server.engine.model.load import from_module
from tests.parity.oracle import NEW_TOKENS, Answer


@dataclass(frozen=True, slots=True)
class Question:
    """One sequence to run: its own tokens (after the prefix) and its adapter."""

    tokens: tuple[int, ...]
    adapter: AdapterSource | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """What the engine answered, in the questions' order, and what its steps looked like."""

    answers: list[Answer]
    stats: list[StepStats]


class Inline(Executor):
    """Reads a file where it is asked to, so that who shares a step with whom does not hang on a thread's luck."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Bench:
    """An engine that answers one list of questions after the other.

    With `ahead` set, single tokens go through static buffers as on a GPU; where it is true nobody looks at logits, so
    that steps are launched before the tokens of the one before are known.
    """

    def __init__(self, module: PreTrainedModel, sizes: Sizes, attention: str, *, ahead: bool | None = None) -> None:
        model = from_module(module, max_model_len=sizes.max_model_len)
        self._ahead = ahead
        self._numbers = itertools.count()
        self._engine = assemble(model, base_of(model), sizes, attention, Inline(), static=ahead is not None)

    def ask(self, questions: list[Question], new_tokens: int = NEW_TOKENS) -> Run:
        """Ask everything at once and step until all are done; every position's logits are collected."""
        asked = {next(self._numbers): question for question in questions}
        events: dict[int, list[TokenEvent]] = {number: [] for number in asked}
        rows: dict[int, dict[int, Tensor]] = {number: {} for number in asked}
        stats: list[StepStats] = []
        for number, question in asked.items():
            message = Submit(number, question.tokens, SamplingParams(max_tokens=new_tokens), question.adapter)
            if self._ahead:
                self._engine.submit(message)
                continue
            self._engine.submit(
                message,
                rows=frozenset(range(len(question.tokens))),
                on_row=lambda position, logits, number=number: rows[number].__setitem__(position, logits.clone()),
            )
        pending = set(asked)
        while pending:
            for message in self._engine.drain(block=self._engine.waits):
                self._engine.handle(message)
            for reply in self._engine.step():
                assert isinstance(reply, StepReport)
                assert not reply.failures, reply.failures
                stats.append(reply.stats)
                for event in reply.events:
                    events[event.sequence].append(event)
                    if event.finish is not None:
                        pending.discard(event.sequence)
        answers = [
            Answer(
                tuple(event.token for event in events[number]),
                torch.zeros(0)
                if self._ahead
                else torch.stack([rows[number][p] for p in range(len(question.tokens) + new_tokens - 1)]),
            )
            for number, question in asked.items()
        ]
        return Run(answers, stats)
