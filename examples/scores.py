"""Scores of one answer against the answer that was meant, from 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Callable


def rouge_l(said: str, meant: str) -> float:
    """Return the F1 of the longest common subsequence of lower-cased words (ROUGE-L; Lin 2004)."""
    a, b = _words(said), _words(meant)
    lengths = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for column, other in enumerate(b, start=1):
            above = lengths[column]
            lengths[column] = before + 1 if word == other else max(above, lengths[column - 1])
            before = above
    common = lengths[-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


def starts_with(beginning: str) -> Callable[[str, str], float]:
    """Return a score that is 1 where the answer starts with `beginning`, whatever was meant."""
    return lambda said, _: float(said.startswith(beginning))


def ends_itself(said: str, _: str) -> float:
    """Return 1 where the answer is one line and ends as a sentence does, not because it was cut off."""
    return float(said.endswith((".", "!", "?")) and "\n" not in said)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
