"""What is told of a prompt's own tokens: which rows of logits that takes, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from server.core import PromptScores, Scoring
from server.engine.model.logprobs import Likeliest, LogProbs, rows_at_once
from server.engine.model.runner import LogitRow


@dataclass(frozen=True, slots=True)
class Scored:
    """One sequence whose prompt is scored: `tokens` are segment B of it, or begin with that."""

    scoring: Scoring
    tokens: Sequence[int]
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What one step's rows say. `faulty` are sequences with logits that are not finite; nothing is told of them."""

    told: tuple[PromptScores, ...] = ()
    faulty: tuple[int, ...] = ()


def rows_to_score(tokens: Sequence[int], scoring: Scoring, vocab_size: int) -> frozenset[int]:
    """Return the positions in a prompt whose logits are wanted.

    Each is the one before a text token from `scoring.start` on: ids from `vocab_size` on are virtual tokens, which are
    not scored. The last position is always among them, so that the last report comes with it.
    """
    scored = range(scoring.start - 1, len(tokens) - 1)
    return frozenset(row for row in scored if tokens[row + 1] < vocab_size) | {len(tokens) - 1}


def score(logits: Tensor, rows: Sequence[LogitRow], asked: Mapping[int, Scored]) -> Scores:
    """Return what `logits` [rows, vocab] float32 say of the prompts of `asked`, by sequence.

    A row's numbers do not depend on the others. Rows of other sequences, and those behind a prompt, are passed over.
    """
    wanted = [_Row(index, *row) for index, row in enumerate(rows) if row[0] in asked]
    wanted = [row for row in wanted if row.position < asked[row.sequence].prompt_len]
    size = rows_at_once(logits.shape[1], logits.device)
    told: list[PromptScores] = []
    faulty: set[int] = set()
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        _say(logits[[row.index for row in chunk]], chunk, asked, told, faulty)
    return Scores(tuple(scores for scores in _joined(told) if scores.sequence not in faulty), tuple(faulty))


@dataclass(frozen=True, slots=True)
class _Row:
    index: int  # in the logits
    sequence: int
    position: int


def _say(
    logits: Tensor, rows: Sequence[_Row], asked: Mapping[int, Scored], told: list[PromptScores], faulty: set[int]
) -> None:
    """Add a report for each row of `logits`, or its sequence to the faulty ones."""
    finite = (logits.amax(dim=-1).isfinite() & logits.amin(dim=-1).isfinite()).tolist()
    faulty.update(row.sequence for row, good in zip(rows, finite, strict=True) if not good)
    if not all(finite):
        logits = logits.nan_to_num()  # so that the others' numbers can still be taken
    probs = LogProbs.of(logits)
    places: list[int] = []
    ids: list[int] = []
    for place, row in enumerate(rows):
        wanted = _ids(row, asked[row.sequence])
        places += [place] * len(wanted)
        ids += wanted
    values = iter(probs.take(places, ids))
    tops = probs.likeliest(max(asked[row.sequence].scoring.top for row in rows))
    told += [_report(row, asked[row.sequence], values, top) for row, top in zip(rows, tops, strict=True)]


def _ids(row: _Row, scored: Scored) -> Sequence[int]:
    """Return the tokens that are scored behind a row: the prompt's next, or those asked for after its last."""
    last = row.position == scored.prompt_len - 1
    return scored.scoring.after if last else (scored.tokens[row.position + 1],)


def _report(row: _Row, scored: Scored, values: Iterator[float], top: Likeliest) -> PromptScores:
    """Return one row's report, and take its numbers from those of this and all later rows."""
    found = tuple(islice(values, len(_ids(row, scored))))
    start = row.position + 1
    if start == scored.prompt_len:
        return PromptScores(row.sequence, start, (), after=found)
    tops = (top[: scored.scoring.top],) if scored.scoring.top else ()
    return PromptScores(row.sequence, start, found, tops)


def _joined(reports: Iterable[PromptScores]) -> list[PromptScores]:
    """Join the reports of consecutive tokens."""
    runs: list[list[PromptScores]] = []
    for report in reports:
        before = runs[-1][-1] if runs else None
        if before is not None and (before.sequence, before.start + 1) == (report.sequence, report.start):
            runs[-1].append(report)
        else:
            runs.append([report])
    return [
        PromptScores(
            run[0].sequence,
            run[0].start,
            tuple(value for report in run for value in report.logprobs),
            tuple(top for report in run for top in report.tops),
            run[-1].after,
        )
        for run in runs
    ]
