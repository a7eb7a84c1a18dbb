"""Messages to an engine in this process, and everything that it tells of each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.core import PromptScores, TokenEvent
from server.engine.loop import Engine
from server.engine.messages import Failure, Started, StepReport, StepStats, Submit


@dataclass
class Told:
    """What the engine told of one sequence."""

    scores: list[PromptScores] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    failure: Failure | None = None
    started: Started | None = None

    @property
    def logprobs(self) -> dict[int, float]:
        """By position in the prompt; each position is told once."""
        pairs = [(told.start + i, p) for told in self.scores for i, p in enumerate(told.logprobs)]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    @property
    def tops(self) -> dict[int, tuple[tuple[int, float], ...]]:
        """The likeliest by position in the prompt."""
        return {told.start + i: top for told in self.scores for i, top in enumerate(told.tops)}

    @property
    def ended(self) -> bool:
        """Whether nothing more will be told."""
        return self.failure is not None or bool(self.events and self.events[-1].finish)


@dataclass
class Answers:
    """What was told by sequence id, and what each step was like."""

    told: dict[int, Told]
    stats: list[StepStats]

    def __getitem__(self, sequence: int) -> Told:
        return self.told[sequence]

    @property
    def computed(self) -> int:
        """Tokens that went through the model."""
        return sum(stats.batch_tokens for stats in self.stats)


def ask_all(engine: Engine, messages: Sequence[Submit]) -> Answers:
    """Send all at once and step until all have ended; scores must come before the first event of their sequence."""
    answers = Answers({message.sequence: Told() for message in messages}, [])
    for message in messages:
        engine.handle(message)
    while not all(told.ended for told in answers.told.values()):
        for message in engine.drain(block=engine.waits):
            assert message is not None
            engine.handle(message)
        for report in engine.step():
            assert isinstance(report, StepReport)
            assert report.stats is not None
            answers.stats.append(report.stats)
            _note(report, answers)
    return answers


def _note(report: StepReport, answers: Answers) -> None:
    for started in report.started:
        answers[started.sequence].started = started
    for scores in report.scores:
        assert not answers[scores.sequence].events, "scores come too late"
        answers[scores.sequence].scores.append(scores)
    for event in report.events:
        answers[event.sequence].events.append(event)
    for failure in report.failures:
        answers[failure.sequence].failure = failure
