"""Who waits, and whose turn it is: the oldest first."""

from __future__ import annotations

import heapq
import sys
from collections import OrderedDict
from collections.abc import Callable

from server.core import PrefixKey
from server.engine.scheduler.sequence import Sequence

NOBODY = sys.maxsize
"""The claim on a prefix that no sequence waits for: younger than any arrival."""

Line = PrefixKey | None
"""Names the line of the sequences that wait with one prefix; None is that of the base model alone."""


class Waiting:
    """The waiting sequences, one line per prefix, each in order of arrival."""

    def __init__(self) -> None:
        self._lines: dict[Line, OrderedDict[int, Sequence]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that just arrived."""
        self._lines.setdefault(sequence.key, OrderedDict())[sequence.id] = sequence
        self._count += 1

    def add_front(self, sequence: Sequence) -> None:
        """Queue a preempted sequence. It is older than all that wait in its line, as those were behind it."""
        self.add(sequence)
        self._lines[sequence.key].move_to_end(sequence.id, last=False)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever in its line it stands."""
        line = self._lines[sequence.key]
        del line[sequence.id]
        self._count -= 1
        if not line:
            del self._lines[sequence.key]

    def head(self, key: Line) -> Sequence | None:
        """Return the oldest sequence of a line."""
        line = self._lines.get(key)
        return next(iter(line.values())) if line else None

    def line(self, key: Line) -> list[Sequence]:
        """Return the sequences of a line, the oldest first."""
        return list(self._lines.get(key, {}).values())

    def claim(self, key: Line) -> int:
        """Return the arrival of the oldest sequence that waits with this prefix, or NOBODY."""
        head = self.head(key)
        return NOBODY if head is None else head.arrival


class Turns:
    """Some of the lines, ordered by the arrival of their heads.

    A heap that is corrected when it is asked, so that a line costs nothing while it stands still. A line must be pushed
    when it becomes eligible and when an older head comes to stand in it; everything else is noticed.
    """

    def __init__(self, waiting: Waiting, eligible: Callable[[Line], bool]) -> None:
        self._waiting = waiting
        self._eligible = eligible
        self._heap: list[tuple[int, Line]] = []
        self._queued: dict[Line, int] = {}  # the one entry of each line that counts

    def push(self, key: Line) -> None:
        """Consider a line from now on, at the place that its head gives it."""
        claim = self._waiting.claim(key)
        if claim != NOBODY and self._queued.get(key) != claim:
            self._queued[key] = claim
            heapq.heappush(self._heap, (claim, key))

    def first(self) -> Sequence | None:
        """Return the oldest head of the eligible lines."""
        while self._heap:
            claim, key = self._heap[0]
            counts = self._queued.get(key) == claim
            head = self._waiting.head(key)
            if counts and head is not None and head.arrival == claim and self._eligible(key):
                return head
            heapq.heappop(self._heap)
            if counts:
                del self._queued[key]
                if self._eligible(key):
                    self.push(key)
        return None
